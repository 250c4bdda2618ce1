"""Recall of a run's selections, by selecting flat with the very queries and keys of that run.

The run hands over what its indexers computed for every token. After it, each decode step's query
is scored against all stored keys of its prefix: no selection of another run is compared with.
"""

from dataclasses import dataclass, field

import torch

from hisparse_kernels.backends import reference_ops
from hisparse_kernels.layouts import IndexLayout
from hisparse_sidecar.config import ModelShape
from hisparse_sidecar.layer_io import LayerInputs, LayerOutputs


@dataclass
class _LayerRecord:
    """What one anchor layer saw: every key, and the queries and selections of decode steps."""

    index_k: list[torch.Tensor] = field(default_factory=list)
    index_q: list[torch.Tensor] = field(default_factory=list)
    index_weights: list[torch.Tensor] = field(default_factory=list)
    selected: list[torch.Tensor] = field(default_factory=list)
    num_tokens: int = 0


class SelectionAudit:
    """Records one sequence while it runs; `recall` afterwards."""

    def __init__(self, model: ModelShape, layout: IndexLayout, prompt_tokens: int) -> None:
        self._topk, self._layout, self._prompt_tokens = model.topk, layout, prompt_tokens
        self._stopped = False
        self._records = {layer: _LayerRecord() for layer in model.anchors}

    def on_layer(self, layer: int, inputs: LayerInputs, outputs: LayerOutputs) -> None:
        """Observe one layer of a step; rows behind the prompt are decode steps."""
        record = self._records.get(layer)
        if record is None or self._stopped:
            return
        assert inputs.index_k is not None
        assert inputs.index_q is not None
        assert inputs.index_weights is not None
        record.index_k.append(inputs.index_k.clone())
        if record.num_tokens >= self._prompt_tokens:
            record.index_q.append(inputs.index_q.clone())
            record.index_weights.append(inputs.index_weights.clone())
            record.selected.append(outputs.topk_indices.clone())
        record.num_tokens += inputs.index_k.shape[0]

    def stop(self) -> None:
        """Leave out what follows."""
        self._stopped = True

    def recall(self) -> dict[int, float]:
        """Recall@topk of each anchor layer: share of the flat selection that was selected.

        Computed on the CPU, wherever the run was.

        Returns:
            Mean over the decode steps; empty if there was none.
        """
        return {
            layer: self._recall(record)
            for layer, record in self._records.items()
            if record.selected
        }

    def _recall(self, record: _LayerRecord) -> float:
        selected = torch.cat(record.selected).cpu()  # [steps, topk]
        flat = self._select_flat(record)
        hits = [
            torch.isin(wanted[wanted >= 0], found).float().mean()
            for wanted, found in zip(flat, selected, strict=True)
        ]
        return float(torch.stack(hits).mean())

    def _select_flat(self, record: _LayerRecord) -> torch.Tensor:
        """[steps, topk] int32, the exact top-k of each recorded query over its prefix."""
        ops = reference_ops()
        keys = ops.pack_index_rows(torch.cat(record.index_k).cpu(), self._layout)
        num_steps = len(record.selected)
        ends = torch.arange(num_steps, dtype=torch.int32) + self._prompt_tokens + 1
        logits = ops.index_logits(
            torch.cat(record.index_q).cpu(),
            torch.cat(record.index_weights).cpu(),
            keys,
            torch.zeros_like(ends),
            ends,
            self._layout,
        )
        found: torch.Tensor = ops.topk(logits, self._topk)
        return found
