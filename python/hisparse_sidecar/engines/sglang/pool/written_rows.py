"""Rows of the device pool that a pass writes: found once for all its layers."""

from collections.abc import Callable

import torch


class WrittenRows:
    """SGLang's device rows of the new tokens' slots, looked up in the pass's first layer.

    A pass visits layers in ascending order and writes to the same slots in each, so a layer that
    does not come after the last one, or has other slots, begins another. A CUDA graph is captured
    after runs with the same slots, and must hold the look-up.
    """

    def __init__(self) -> None:
        self._last: tuple[int, torch.Tensor, torch.Tensor] | None = None

    def of(
        self,
        layer: int,
        slots: torch.Tensor,
        look_up: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Rows of the pool, the same shape as `slots`.

        Args:
            layer: number of the layer that writes.
            slots: SGLang's slots of the new tokens; in one pass one and the same tensor.
            look_up: finds their rows; what it goes by changes between passes alone.
        """
        last = self._last
        if last is not None and last[0] < layer and last[1] is slots:
            rows = last[2]
        else:
            rows = look_up(slots)
        self._last = layer, slots, rows
        return rows
