"""The all-in-memory reference: a stock model with flat selection and, if asked, rounded rows.

Independent of the pipeline and of every op but the row layouts' pack and unpack: keys and values
are expanded, masks are dense, and a layer's index keys stay in one tensor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hisparse_sidecar.engines.transformers.exact_topk import exact_topk, index_scores, positions_of
from hisparse_sidecar.engines.transformers.family import (
    EngineConfig,
    EngineModule,
    attention_modules,
    device_of,
    family_of,
)
from hisparse_sidecar.engines.transformers.model_shape import model_shape
from hisparse_sidecar.engines.transformers.patches import ForwardPatches
from hisparse_sidecar.engines.transformers.row_rounding import (
    RowAgreement,
    RowLayouts,
    larger_gap,
    rounded_index_k,
    rounded_index_q,
    rounded_kv,
)
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.layer_io import LayerInputs


@dataclass(frozen=True)
class GivenLayer:
    """What another run of the same tokens did in one layer, to be followed and measured.

    Attributes:
        rows: its rows before they were stored; None = round the reference's own.
        topk_indices: [rows, topk] int32, what it selected; None = select.
    """

    rows: LayerInputs | None = None
    topk_indices: torch.Tensor | None = None


@dataclass
class NearTies:
    """How far a given selection was from the reference's own, over all forwards of a layer.

    Attributes:
        differing_rows: rows whose set differed.
        worst_gap: largest |score - k-th score| / |k-th score| among positions of only one set.
        worst_share: the same distance as a share of the row's largest |score|: where low-precision
            sums differ, they do so in that unit, and a k-th score may be close to 0.
    """

    differing_rows: int = 0
    worst_gap: float = 0.0
    worst_share: float = 0.0


@dataclass
class _LayerMemory:
    """What a layer keeps: [heads, tokens, dim] keys and values, [tokens, 128] index keys."""

    keys: torch.Tensor
    values: torch.Tensor
    index_keys: torch.Tensor
    near_ties: NearTies = field(default_factory=NearTies)
    row_agreement: RowAgreement = field(default_factory=RowAgreement)


class ReferenceModel:
    """A model of which every attention layer selects exactly and keeps everything in memory.

    Use it as a context manager: the model is itself again at the end. Batch size 1.

    Attributes:
        selected: for each layer [rows, topk] int32 of the last forward, ascending, -1 pads the
            tail; a shared layer holds its anchor's.
    """

    def __init__(self, model: nn.Module, *, layouts: RowLayouts, max_tokens: int) -> None:
        self._model, self._family, self._layouts = model, family_of(model), layouts
        self._shape, self._attentions = model_shape(model.config), attention_modules(model)
        self._memory = [_memory_for(attention, max_tokens) for attention in self._attentions]
        self._max_tokens, self._length = max_tokens, 0
        self._device = device_of(model)
        self._given: Sequence[GivenLayer] = ()
        self._mask = torch.empty(0)
        self.selected: list[torch.Tensor] = []
        self._patches = ForwardPatches()

    def __enter__(self) -> "ReferenceModel":
        for layer, attention in enumerate(self._attentions):
            self._patches.replace(attention, self._attention_forward(layer, attention))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.restore()

    @property
    def near_ties(self) -> list[NearTies]:
        """For each layer, how far the given selections were from the reference's own."""
        return [memory.near_ties for memory in self._memory]

    @property
    def row_agreement(self) -> list[RowAgreement]:
        """For each layer, how far the given rows were from the reference's own."""
        return [memory.row_agreement for memory in self._memory]

    @torch.no_grad()
    def forward(
        self,
        token_ids: torch.Tensor,
        *,
        logits_to_keep: int = 0,
        given: Sequence[GivenLayer] | None = None,
    ) -> torch.Tensor:
        """Appends tokens and returns their logits.

        Args:
            token_ids: [1, rows] int64.
            logits_to_keep: logits of this many last rows; 0 = of all.
            given: what another run did, one for each layer; `near_ties` and `row_agreement` say
                how far that was from what the reference would have done.

        Returns:
            [rows kept, vocab] float.
        """
        num_rows, end = token_ids.shape[1], self._length + token_ids.shape[1]
        if token_ids.shape[0] != 1 or end > self._max_tokens:
            found = f"{token_ids.shape[0]} rows up to token {end}"
            raise InvalidArgument(f"reference got {found}, holds 1 row of {self._max_tokens}")
        self._given = given or [GivenLayer()] * len(self._attentions)
        self.selected = []
        config: EngineConfig = self._model.config
        result = self._model(
            input_ids=token_ids.to(self._device),
            position_ids=torch.arange(self._length, end, device=self._device)[None],
            attention_mask=dict.fromkeys({*config.layer_types, "indexed_attention"}),
            use_cache=False,
            logits_to_keep=logits_to_keep,
        )
        self._length += num_rows
        logits: torch.Tensor = result.logits[0]
        return logits

    def next_logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[vocab] float, logits after the last of `token_ids`; what `greedy` takes."""
        return self.forward(token_ids, logits_to_keep=1)[-1]

    def _attention_forward(self, layer: int, attention: EngineModule) -> Callable[..., Any]:
        def forward(
            hidden_states: torch.Tensor,
            position_embeddings: tuple[torch.Tensor, torch.Tensor],
            **_: Any,  # noqa: ANN401
        ) -> tuple[Any, ...]:
            cos, sin = (table[0] for table in position_embeddings)  # [rows, 64]
            result = self._attend(layer, attention, hidden_states[0], (cos, sin))
            return self._family.attention_result(result[None])

        return forward

    def _attend(
        self,
        layer: int,
        attention: EngineModule,
        hidden: torch.Tensor,
        table: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        """[rows, hidden_size]: stores the rows' keys and values, selects, attends."""
        memory, rows = self._memory[layer], hidden.shape[0]
        nope, rope = attention.qk_nope_head_dim, attention.qk_rope_head_dim
        resid = attention.q_a_layernorm(attention.q_a_proj(hidden))
        query = attention.q_b_proj(resid).view(rows, -1, nope + rope)  # [rows, heads, nope + rope]
        latent, k_rope = attention.kv_a_proj_with_mqa(hidden).split(
            [attention.kv_lora_rank, rope], dim=-1
        )
        q_rope, k_rope = self._family.rotate_rows(
            query[..., nope:], k_rope[:, None], *table, unsqueeze_dim=1
        )
        row = torch.cat([attention.kv_a_layernorm(latent), k_rope[:, 0]], dim=-1)  # [rows, 576]
        given = self._given[layer].rows
        row = memory.row_agreement.adopt(row, None if given is None else given.kv)
        self._store(memory, attention, rounded_kv(row, self._layouts.kv))
        if self._shape.is_anchor(layer):
            self._mask = self._selection(layer, attention.indexer, hidden, resid, table)
        self.selected.append(positions_of(self._mask, attention.config.index_topk))
        query = torch.cat([query[..., :nope], q_rope], dim=-1).transpose(0, 1)
        out = _masked_attention(query, memory, self._mask, attention.scaling, self._length + rows)
        result: torch.Tensor = attention.o_proj(out.flatten(1))
        return result

    def _store(self, memory: _LayerMemory, attention: EngineModule, rows: torch.Tensor) -> None:
        """Expands latent rows [rows, 576] to keys and values of every head."""
        nope, rank = attention.qk_nope_head_dim, attention.kv_lora_rank
        new = slice(self._length, self._length + rows.shape[0])
        expanded = attention.kv_b_proj(rows[:, :rank])
        expanded = expanded.view(rows.shape[0], -1, nope + attention.v_head_dim).transpose(0, 1)
        memory.keys[:, new, :nope] = expanded[..., :nope]
        memory.keys[:, new, nope:] = rows[:, rank:]
        memory.values[:, new] = expanded[..., nope:]

    def _selection(
        self,
        layer: int,
        indexer: EngineModule,
        hidden: torch.Tensor,
        resid: torch.Tensor,
        table: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        """[rows, tokens] bool, the positions to attend to."""
        memory, rope, rows = self._memory[layer], indexer.qk_rope_head_dim, hidden.shape[0]
        query = indexer.wq_b(resid).view(rows, indexer.n_heads, indexer.head_dim)
        key = indexer.k_norm(indexer.wk(hidden))[:, None]
        q_rope, k_rope = self._family.rotate_index(
            query[..., :rope], key[..., :rope], *table, unsqueeze_dim=1
        )
        query = torch.cat([q_rope, query[..., rope:]], dim=-1)
        key = torch.cat([k_rope, key[..., rope:]], dim=-1)[:, 0]
        weights = indexer.weights_proj(hidden.to(indexer.weights_proj.weight.dtype)).float()
        weights = weights * indexer.n_heads**-0.5 * indexer.softmax_scale
        query, weights = rounded_index_q(query, weights, self._layouts.index)
        given, agreement, end = self._given[layer], memory.row_agreement, self._length + rows
        if given.rows is not None:
            adopt = agreement.adopt_codes if self._layouts.index == "fp8" else agreement.adopt
            query = adopt(query, given.rows.index_q)
            weights = agreement.adopt(weights, given.rows.index_weights)
            key = agreement.adopt(key, given.rows.index_k)
        memory.index_keys[self._length : end] = rounded_index_k(key, self._layouts.index)
        scores = index_scores(query.float(), weights, memory.index_keys[:end], self._length)
        own = exact_topk(scores, indexer.index_topk)
        if given.topk_indices is None:
            return own
        followed = _mask_of(given.topk_indices, end)
        _compare(memory.near_ties, own, followed, scores)
        return followed


def _memory_for(attention: EngineModule, max_tokens: int) -> _LayerMemory:
    weight, heads = attention.kv_b_proj.weight, attention.num_heads
    indexed = max_tokens if attention.indexer is not None else 0
    dims = (attention.qk_nope_head_dim + attention.qk_rope_head_dim, attention.v_head_dim)
    return _LayerMemory(
        keys=weight.new_empty(heads, max_tokens, dims[0]),
        values=weight.new_empty(heads, max_tokens, dims[1]),
        index_keys=torch.empty(indexed, attention.config.index_head_dim, device=weight.device),
    )


def _masked_attention(
    query: torch.Tensor, memory: _LayerMemory, mask: torch.Tensor, scale: float, num_tokens: int
) -> torch.Tensor:
    """[rows, heads, v_head_dim]: softmax over the positions of `mask` [rows, tokens] bool."""
    hidden = ~mask
    outs = []
    for head, keys, values in zip(query, memory.keys, memory.values, strict=True):
        logits = (head @ keys[:num_tokens].T).float() * scale  # [rows, tokens]
        weights = logits.masked_fill_(hidden, -torch.inf).softmax(dim=-1)
        outs.append(weights.to(values.dtype) @ values[:num_tokens])
    return torch.stack(outs, dim=1)


def _mask_of(positions: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """[rows, num_tokens] bool of [rows, topk] int32 positions, -1 = none."""
    shape = positions.shape[0], num_tokens + 1
    mask = torch.zeros(shape, dtype=torch.bool, device=positions.device)
    columns = torch.where(positions < 0, num_tokens, positions).long()
    return mask.scatter_(1, columns, True)[:, :num_tokens]


def _compare(
    near_ties: NearTies, own: torch.Tensor, given: torch.Tensor, scores: torch.Tensor
) -> None:
    """Adds one forward's differences between two selections to `near_ties`."""
    different = own ^ given
    rows = different.any(dim=1)
    if not bool(rows.any()):
        return
    kth = scores.masked_fill(~own, torch.inf).amin(dim=1, keepdim=True)
    distance = torch.where(scores == kth, 0.0, (scores - kth).abs())
    relative = torch.where(scores == kth, 0.0, distance / kth.abs())
    largest = scores.masked_fill(scores == -torch.inf, 0.0).abs().amax(dim=1, keepdim=True)
    share = distance / largest.clamp(min=1e-30)
    near_ties.differing_rows += int(rows.sum())
    near_ties.worst_gap = larger_gap(near_ties.worst_gap, relative[different])
    near_ties.worst_share = larger_gap(near_ties.worst_share, share[different])
