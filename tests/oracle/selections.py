"""Record what every layer of an attached model selected."""

import torch

from hisparse_sidecar.layer_io import LayerInputs, LayerOutputs


class SelectionRecord:
    """Pass it as `on_layer`; every forward must have the same batch size.

    Attributes:
        batch_size: rows of every batch.
    """

    def __init__(self, batch_size: int = 1) -> None:
        self.batch_size = batch_size
        self._parts: dict[int, list[torch.Tensor]] = {}

    def __call__(self, layer: int, _: LayerInputs, outputs: LayerOutputs) -> None:
        positions = outputs.topk_indices
        self._parts.setdefault(layer, []).append(
            positions.view(self.batch_size, -1, positions.shape[1]).clone()
        )

    def of(self, batch_row: int = 0) -> list[torch.Tensor]:
        """For each layer [tokens, topk] int32: everything selected for one row of the batch."""
        layers = sorted(self._parts)
        return [torch.cat([part[batch_row] for part in self._parts[i]]) for i in layers]

    def last(self) -> list[torch.Tensor]:
        """For each layer [rows, topk] int32: the last forward of batch row 0."""
        return [self._parts[layer][-1][0] for layer in sorted(self._parts)]

    def clear(self) -> None:
        """Forgets everything."""
        self._parts.clear()
