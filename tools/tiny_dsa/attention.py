"""MLA and its lightning indexer, with the parameter names of transformers' classes."""

import contextlib
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.tiny_dsa.config import DEVICE, ModelConfig
from tools.tiny_dsa.dense_attention import dense_attention
from tools.tiny_dsa.fused import index_scores, masked_softmax, selection_loss


class Rotary(NamedTuple):
    """Angles of each token: [tokens, rope_dim / 2] fp32."""

    cos: Tensor
    sin: Tensor

    def over_heads(self) -> "Rotary":
        """For [batch, tokens, heads, dim]: one angle for all heads."""
        return Rotary(self.cos[:, None], self.sin[:, None])


class Probe(NamedTuple):
    """What one layer computed, kept for analysis."""

    query: Tensor  # [batch, heads, tokens, dim]
    key: Tensor  # [batch, heads, tokens, dim]
    index_query: Tensor  # [batch, tokens, index_heads, index_dim]
    index_key: Tensor  # [batch, tokens, index_dim]
    index_weights: Tensor  # [batch, tokens, index_heads] fp32


@dataclass
class SelectionPass:
    """How one forward pass selects, and what the pass leaves behind.

    "warm" computes dense output and the indexer's loss, "sparse" attends to the top-k alone.
    """

    topk: int
    kind: Literal["warm", "sparse"] = "sparse"
    chunk_tokens: int = 512
    loss_chunks: frozenset[int] = frozenset()
    layer_losses: list[Tensor] = field(default_factory=list)
    probes: list[Probe] | None = None


class RmsNorm(nn.Module):
    """x / rms(x) * weight, in fp32."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> the same shape and dtype."""
        h = x.float()
        return self.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)).to(
            x.dtype
        )


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate the pairs (0, 1), (2, 3), ...; all first halves come out before all second ones."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = rotary
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Indexer(nn.Module):
    """Index query, key and weights of each token; `128**-0.5` and `heads**-0.5` are folded in."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.dim = config.index_n_heads, config.index_head_dim
        self.rope_dim = config.qk_rope_head_dim
        self.wq_b = nn.Linear(config.q_lora_rank, self.heads * self.dim, bias=False)
        self.wk = nn.Linear(config.hidden_size, self.dim, bias=False)
        self.k_norm = nn.LayerNorm(self.dim, eps=1e-6)
        self.weights_proj = nn.Linear(config.hidden_size, self.heads, bias=False)

    def forward(self, x: Tensor, q_residual: Tensor, rotary: Rotary) -> tuple[Tensor, ...]:
        """Query [batch, tokens, heads, dim], key [batch, tokens, dim], weights fp32."""
        query = self.wq_b(q_residual).unflatten(-1, (self.heads, self.dim))
        key = self.k_norm(self.wk(x)).to(query.dtype)
        query = self._rotate_front(query, rotary.over_heads()) * self.dim**-0.5
        key = self._rotate_front(key, rotary)
        with torch.autocast(DEVICE, enabled=False):
            weights = F.linear(x.float(), self.weights_proj.weight.float()) * self.heads**-0.5
        return query, key, weights

    def _rotate_front(self, x: Tensor, rotary: Rotary) -> Tensor:
        front, rest = x[..., : self.rope_dim], x[..., self.rope_dim :]
        return torch.cat([rotate(front, rotary), rest], -1)


class Attention(nn.Module):
    """MLA with expanded keys and values, dense or over the indexer's selection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, self.heads = config.hidden_size, config.num_attention_heads
        self.nope_dim, self.rope_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.latent_dim = config.kv_lora_rank
        self.scale = (self.nope_dim + self.rope_dim) ** -0.5
        self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=False)
        self.q_a_layernorm = RmsNorm(config.q_lora_rank)
        query_dim = self.heads * (self.nope_dim + self.rope_dim)
        self.q_b_proj = nn.Linear(config.q_lora_rank, query_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, self.latent_dim + self.rope_dim, bias=False)
        self.kv_a_layernorm = RmsNorm(self.latent_dim)
        expanded_dim = self.heads * (self.nope_dim + config.v_head_dim)
        self.kv_b_proj = nn.Linear(self.latent_dim, expanded_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * config.v_head_dim, hidden, bias=False)
        self.indexer = Indexer(config)

    def forward(self, x: Tensor, rotary: Rotary, selection: SelectionPass | None) -> Tensor:
        """[batch, tokens, hidden] -> the same shape; no selection = the whole prefix."""
        q_residual, query, key, value = self._project(x, rotary)
        if selection is None:
            return self._output(dense_attention(query, key, value, self.scale))
        # the indexer's inputs are detached: its loss never trains the rest
        index = self.indexer(x.detach(), q_residual.detach(), rotary)
        probe = Probe(query, key, *index)
        if selection.probes is not None:
            selection.probes.append(probe)
        chunks = self._attend_chunks(probe, value, selection)
        out = torch.cat(chunks, 2) if chunks else dense_attention(query, key, value, self.scale)
        return self._output(out)

    def _project(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q_residual = self.q_a_layernorm(self.q_a_proj(x))
        query = self._split_heads(self.q_b_proj(q_residual))
        query = torch.cat(
            [query[..., : self.nope_dim], rotate(query[..., self.nope_dim :], rotary)], -1
        )
        latent, rope_key = self.kv_a_proj_with_mqa(x).split([self.latent_dim, self.rope_dim], -1)
        expanded = self._split_heads(self.kv_b_proj(self.kv_a_layernorm(latent)))
        rope_key = rotate(rope_key, rotary).unsqueeze(1).expand(-1, self.heads, -1, -1)
        key = torch.cat([expanded[..., : self.nope_dim], rope_key], -1)
        return q_residual, query, key, expanded[..., self.nope_dim :]

    def _split_heads(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        return x.view(batch, tokens, self.heads, -1).transpose(1, 2)  # [batch, heads, tokens, dim]

    def _output(self, heads: Tensor) -> Tensor:
        out: Tensor = self.o_proj(heads.transpose(1, 2).flatten(2))
        return out

    def _attend_chunks(self, probe: Probe, value: Tensor, selection: SelectionPass) -> list[Tensor]:
        """Outputs of each chunk of rows (none when warm); appends this layer's loss."""
        tokens = value.shape[2]
        size = min(selection.chunk_tokens, tokens)
        outputs, losses = [], []
        for number, start in enumerate(range(0, tokens, size)):
            wants_loss = number in selection.loss_chunks
            if selection.kind == "warm" and not wants_loss:
                continue
            rows = slice(start, min(start + size, tokens))
            probabilities, loss = self._attend_rows(probe, rows, selection, wants_loss)
            if loss is not None:
                losses.append(loss)
            if selection.kind == "sparse":
                outputs.append(probabilities @ value[:, :, : rows.stop])
        if losses:
            selection.layer_losses.append(torch.stack(losses).mean())
        return outputs

    def _attend_rows(
        self, probe: Probe, rows: slice, selection: SelectionPass, wants_loss: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Probabilities [batch, heads, rows, end] of one chunk, and the indexer's loss on it."""
        start, end = rows.start, rows.stop
        ones = torch.ones(end - start, end, dtype=torch.bool, device=probe.query.device)
        selected = causal = ones.tril_(start)[None]
        is_sparse = selection.kind == "sparse" and end > selection.topk
        scores = None
        if wants_loss or is_sparse:
            with contextlib.nullcontext() if wants_loss else torch.no_grad():
                scores = index_scores(
                    probe.index_query[:, rows],
                    probe.index_key[:, :end],
                    probe.index_weights[:, rows],
                )
        if is_sparse and scores is not None:
            selected = _select(scores.detach(), causal, selection.topk)
        dots = probe.query[:, :, rows] @ probe.key[:, :, :end].transpose(2, 3)
        probabilities = masked_softmax(dots, selected, self.scale)
        if not wants_loss or scores is None:
            return probabilities, None
        return probabilities, selection_loss(scores, probabilities.detach(), selected)


@torch.no_grad()
def _select(scores: Tensor, causal: Tensor, topk: int) -> Tensor:
    """[batch, rows, tokens] bool: the top-k of each row's visible tokens."""
    best = scores.masked_fill(~causal, float("-inf")).topk(topk, -1, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True) & causal
