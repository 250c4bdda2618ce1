"""A session that keeps every fp32 row in plain tensors: checks the adapter, not the pipeline."""

from collections.abc import Sequence

import torch
from typing_extensions import Unpack

from hisparse_sidecar.config import ModelShape, SidecarConfig
from hisparse_sidecar.config.sequence import OpenedPrompt, OpenOptions
from hisparse_sidecar.errors import InvalidArgument, UnknownSequence, WrongState
from hisparse_sidecar.layer_io import LayerInputs, LayerOutputs


class DenseSession:
    """Flat selection by a stable sort, attention by a gather of the selected rows.

    Set `fail_at_layer` to make the next call of that layer raise.
    """

    def __init__(self, model: ModelShape) -> None:
        self.config = SidecarConfig(
            model=model, host_pages=1, kv_layout="fp32", index_layout="fp32"
        )
        self.fail_at_layer: int | None = None
        self.steps: list[tuple[str, list[tuple[int, int]]]] = []
        self.told: list[Sequence[int] | None] = []  # token ids of every step
        self.aborted_steps = 0
        self._rows: dict[int, dict[str, torch.Tensor]] = {}
        self._lengths: dict[int, int] = {}
        self._admitted: dict[int, int] = {}
        self._open: list[tuple[int, int]] | None = None
        self._selected: dict[int, torch.Tensor] = {}

    def open(self, prompt_tokens: int, max_new_tokens: int, **_: Unpack[OpenOptions]) -> int:
        sequence = len(self._admitted) + 1
        self._rows[sequence], self._lengths[sequence] = {}, 0
        self._admitted[sequence] = prompt_tokens + max_new_tokens
        return sequence

    def open_prompt(
        self, token_ids: Sequence[int], max_new_tokens: int, **options: object
    ) -> OpenedPrompt:
        return OpenedPrompt(self.open(len(token_ids), max_new_tokens), 0)

    def length(self, sequence: int) -> int:
        return self._lengths[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        if self._open is not None:
            raise WrongState("a step is open, need none")
        self._cut(sequence, length)

    def close_sequence(self, sequence: int) -> None:
        if sequence not in self._lengths:
            raise UnknownSequence(f"sequence {sequence} of {len(self._lengths)}")
        del self._rows[sequence], self._lengths[sequence]

    def begin_step(
        self,
        rows: Sequence[tuple[int, int]],
        kind: str,
        *,
        padded_rows: int | None = None,
        token_ids: Sequence[int] | None = None,
    ) -> None:
        for sequence, count in rows:
            end = self._lengths[sequence] + count
            if end > self._admitted[sequence]:
                raise InvalidArgument(f"{end} tokens, admitted {self._admitted[sequence]}")
        self._open, self._selected = list(rows), {}
        self.steps.append((kind, list(rows)))
        self.told.append(token_ids)
        for sequence, count in rows:
            self._lengths[sequence] += count

    def run_layer(self, layer: int, inputs: LayerInputs) -> LayerOutputs:
        assert self._open is not None
        if layer == self.fail_at_layer:
            self.fail_at_layer = None
            raise RuntimeError(f"layer {layer} fails on purpose")
        anchor = self.config.model.anchor_of[layer]
        outs, start = [], 0
        for sequence, count in self._open:
            rows = slice(start, start + count)
            outs.append(self._attend(sequence, layer, anchor, inputs, rows))
            start += count
        assert start == inputs.query.shape[0]
        out, lse, selected = (torch.cat(parts) for parts in zip(*outs, strict=True))
        return LayerOutputs(out, lse, selected)

    def end_step(self) -> None:
        self._open = None

    def abort_step(self) -> None:
        assert self._open is not None
        rows, self._open = self._open, None
        self.aborted_steps += 1
        for sequence, count in rows:
            self._cut(sequence, self._lengths[sequence] - count)

    def _cut(self, sequence: int, length: int) -> None:
        self._lengths[sequence] = length
        kept = {name: rows[:length] for name, rows in self._rows[sequence].items()}
        self._rows[sequence] = kept

    def _append(self, sequence: int, name: str, rows: torch.Tensor) -> torch.Tensor:
        before = self._rows[sequence].get(name, rows[:0])
        self._rows[sequence][name] = torch.cat([before, rows.float()])
        return self._rows[sequence][name]

    def _attend(
        self, sequence: int, layer: int, anchor: int, inputs: LayerInputs, rows: slice
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        kv = self._append(sequence, f"kv{layer}", inputs.kv[rows])
        if layer == anchor:
            assert inputs.index_q is not None
            assert inputs.index_weights is not None
            assert inputs.index_k is not None
            keys = self._append(sequence, f"index{layer}", inputs.index_k[rows])
            self._selected[sequence] = self._select(
                inputs.index_q[rows].float(), inputs.index_weights[rows], keys
            )
        else:
            assert inputs.index_q is None
            assert inputs.index_k is None
        selected = self._selected[sequence]
        chosen = kv[selected.clamp(min=0)]  # [rows, topk, 576]
        logits = torch.einsum("rhd,rkd->rhk", inputs.query[rows].float(), chosen)
        logits = logits * self.config.model.softmax_scale
        logits = logits.masked_fill((selected < 0)[:, None], -torch.inf)
        out = torch.einsum("rhk,rkd->rhd", logits.softmax(-1), chosen[..., :512])
        return out, logits.logsumexp(-1), selected.int()

    def _select(self, query: torch.Tensor, weights: torch.Tensor, keys: torch.Tensor):
        dots = torch.einsum("rhd,td->rht", query, keys).relu()
        scores = torch.einsum("rht,rh->rt", dots, weights)
        rows, tokens = scores.shape
        positions = torch.arange(tokens - rows, tokens)
        scores = scores.masked_fill(torch.arange(tokens) > positions[:, None], -torch.inf)
        order = scores.sort(dim=1, descending=True, stable=True)
        topk = self.config.model.topk
        best = order.indices.masked_fill(order.values == -torch.inf, tokens)[:, :topk]
        best = torch.nn.functional.pad(best, (0, max(0, topk - tokens)), value=tokens)
        best = best.sort(dim=1).values
        return best.masked_fill(best == tokens, -1)
