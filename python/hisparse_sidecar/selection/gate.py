"""Flat selection where it is the faster one: short sequences, by measured times."""

import math

import torch

from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.selection.gate_table import GateTable, Setting


class Gate:
    """Chooses flat or HISA for a call from numbers that the host knows; never looks at the device.

    One rank reads its table; all, itself included, `adopt` it with the next epoch. A path may
    change only where the epoch, the length or the rows do: who captures graphs captures one for
    each path and epoch.

    Attributes:
        table: measured times; None = HISA always.
        epoch: of the table, as it was adopted; 0 = what this rank found itself.
    """

    def __init__(self, table: GateTable | None = None, epoch: int = 0) -> None:
        self.table, self.epoch = table, epoch

    def adopt(self, table: GateTable | None, epoch: int) -> None:
        """Takes another rank's table.

        Raises:
            WrongState: `epoch` is not above the present one; nothing has changed.
        """
        if epoch <= self.epoch:
            raise WrongState(f"epoch of the gate is {self.epoch}, cannot adopt epoch {epoch}")
        self.table, self.epoch = table, epoch

    def prefers_flat(
        self, selection: SelectionConfig, setting: Setting, length: int, rows: int
    ) -> bool:
        """Whether flat is the faster way to do what `selection` asks for.

        Args:
            selection: only HISA with gate "auto" may be replaced.
            setting: of the call.
            length: tokens of the longest sequence.
            rows: rows of the call, padding included.
        """
        if self.table is None or selection.gate == "off" or selection.index_source != "hisa":
            return False
        grid = self.table.grid_for(setting)
        if grid is None or rows < 1:
            return False
        measured = grid.flat_up_to
        nearest = min(measured, key=lambda count: (abs(math.log(count / rows)), count))
        return length <= measured[nearest]


def gpu_name(device: torch.device) -> str:
    """Name of the GPU as tables have it; "cpu" without one."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
