"""How good an indexer's selection is, and what HISA and MISA would keep of it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tools.tiny_dsa.attention import Probe, SelectionPass
from tools.tiny_dsa.config import DEVICE, autocast
from tools.tiny_dsa.metrics import to_device
from tools.tiny_dsa.model import TinyDsa
from tools.tiny_dsa.tasks import Tokens

_NEVER = float("-inf")
_MISA_BLOCKS = (128, 1024)


@dataclass(frozen=True)
class AnalysisPlan:
    """What to look at."""

    topk: int
    num_pairs: int  # query positions t, each with t + 1
    first_position: int
    hisa: tuple[tuple[int, int], ...]  # (block tokens, kept blocks)
    misa: tuple[int, ...]  # routed heads


def analyse(
    model: TinyDsa, tokens: Tokens, plan: AnalysisPlan, rng: np.random.Generator
) -> list[dict[str, float]]:
    """One set of numbers per layer, from one sequence at random neighbouring positions."""
    probes: list[Probe] = []
    with autocast():
        model.hidden(to_device(tokens)[None], SelectionPass(plan.topk, probes=probes))
    candidates = np.arange(plan.first_position, len(tokens) - 1)
    chosen = torch.from_numpy(rng.choice(candidates, plan.num_pairs, replace=False)).to(DEVICE)
    rows = torch.stack([chosen, chosen + 1], 1).flatten()
    scale = (model.config.qk_nope_head_dim + model.config.qk_rope_head_dim) ** -0.5
    return [_LayerRows(probe, rows, plan, scale).numbers() for probe in probes]


class _LayerRows:
    """The chosen query rows of one layer; R rows, T tokens, H index heads below."""

    def __init__(self, probe: Probe, rows: Tensor, plan: AnalysisPlan, scale: float) -> None:
        self._rows, self._plan = rows, plan
        self._query = probe.index_query[0, rows].float()  # [R, H, dim]
        self._key = probe.index_key[0].float()  # [T, dim]
        self._weights = probe.index_weights[0, rows]  # [R, H]
        self._positions = torch.arange(len(self._key), device=rows.device)
        self._causal = self._positions[None] <= rows[:, None]  # [R, T]
        self._head_scores = self._score(self._key)  # [R, H, T]
        self._scores = self._head_scores.sum(1).masked_fill(~self._causal, _NEVER)
        self._selected = self._top(self._scores)
        dots = torch.einsum("hrd,hsd->hrs", probe.query[0][:, rows].float(), probe.key[0].float())
        attention = torch.softmax((dots * scale).masked_fill(~self._causal, _NEVER), -1)
        self._attention = attention.mean(0)  # [R, T]

    def numbers(self) -> dict[str, float]:
        found = dict(self._masses())
        for block_tokens, kept in self._plan.hisa:
            name = f"hisa_recall_B{block_tokens}_m{kept}"
            found[name] = self._recall(self._hisa_candidates(block_tokens, kept))
        for block_tokens in _MISA_BLOCKS:
            if len(self._key) >= 2 * block_tokens:
                found |= dict(self._misa_recalls(block_tokens))
        return {name: value.item() for name, value in found.items()}

    def _masses(self) -> Iterator[tuple[str, Tensor]]:
        topk, attention, causal = self._plan.topk, self._attention, self._causal
        recent = causal & (self._positions[None] > self._rows[:, None] - topk)
        noise = torch.rand_like(self._scores).masked_fill(~causal, _NEVER)
        yield "mass_top", (attention * self._selected).sum(-1).mean()
        yield "mass_best_possible", attention.topk(topk, -1).values.sum(-1).mean()
        yield "mass_last_window", (attention * recent).sum(-1).mean()
        yield "mass_random", (attention * self._top(noise)).sum(-1).mean()
        both = self._selected[0::2] & self._selected[1::2]
        yield "adjacent_overlap", both.sum(-1).float().mean() / topk

    def _score(self, key: Tensor) -> Tensor:
        """[R, H, len(key)] weighted scores, not yet summed over heads."""
        dots = F.relu(torch.einsum("rhd,sd->rhs", self._query, key))
        return dots * self._weights.unsqueeze(-1)

    def _top(self, scores: Tensor) -> Tensor:
        best = scores.topk(self._plan.topk, -1).indices
        return torch.zeros_like(self._causal).scatter_(1, best, True) & self._causal

    def _recall(self, kept: Tensor) -> Tensor:
        return (self._selected & kept).sum(-1).float().mean() / self._plan.topk

    def _pooled(self, block_tokens: int) -> Tensor:
        """[complete blocks, dim] mean keys."""
        num_tokens = len(self._key) // block_tokens * block_tokens
        return self._key[:num_tokens].view(-1, block_tokens, self._key.shape[1]).mean(1)

    def _hisa_candidates(self, block_tokens: int, num_kept: int) -> Tensor:
        """[R, T] bool: tokens of the best blocks, the first and the newest always among them."""
        pooled = self._pooled(block_tokens)
        block = torch.arange(len(pooled), device=self._rows.device)[None]
        newest = (self._rows // block_tokens).clamp_max(len(pooled) - 1)[:, None]
        scores = self._score(pooled).sum(1).masked_fill(block > newest, _NEVER)
        scores = scores.masked_fill((block == 0) | (block == newest), float("inf"))
        best = scores.topk(min(num_kept, scores.shape[1]), -1).indices
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)
        tokens = kept.repeat_interleave(block_tokens, 1)
        tail = len(self._key) - tokens.shape[1]  # the incomplete block at the end
        return F.pad(tokens, (0, tail), value=True) & self._causal

    def _misa_recalls(self, block_tokens: int) -> Iterator[tuple[str, Tensor]]:
        """Recall with each row's strongest heads alone."""
        pooled = self._pooled(block_tokens)
        block = torch.arange(len(pooled), device=self._rows.device)[None]
        incomplete = block >= (self._rows // block_tokens)[:, None]
        energy = self._score(pooled).abs().masked_fill(incomplete[:, None], 0).sum(-1)  # [R, H]
        for num_heads in self._plan.misa:
            best = energy.topk(min(num_heads, energy.shape[1]), -1).indices
            routed = torch.zeros_like(energy).scatter_(1, best, 1.0)
            scores = (self._head_scores * routed.unsqueeze(-1)).sum(1)
            kept = self._top(scores.masked_fill(~self._causal, _NEVER))
            yield f"misa_recall_h{num_heads}_B{block_tokens}", self._recall(kept)
