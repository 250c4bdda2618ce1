"""A prompt's KV rows on their way from the engine's pages to the host."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hisparse_kernels.backends import Ops
from hisparse_sidecar.engine_rows.planned_tables import planned_arrays
from hisparse_sidecar.uploads import upload

if TYPE_CHECKING:
    from hisparse_sidecar._core import StepTables

_ROWS_AT_A_TIME = 32768


class HostPlan:
    """Where the rows of a plan lie on the host."""

    def __init__(self, plan: "StepTables") -> None:
        self._arrays = planned_arrays(plan)

    def host_rows(self) -> list[int]:
        """Host row of each row; -1 = padding row."""
        found: list[int] = self._arrays["host_row_ids"].tolist()
        return found

    def pages(self) -> list[int]:
        """Host pages of the plan's sequences, one sequence after the other."""
        found: list[int] = self._arrays["page_table"].flatten().tolist()
        return found

    def uploaded(self, device: torch.device) -> torch.Tensor:
        """[rows] int64 on `device`, as `host_rows`."""
        row_ids = torch.from_numpy(self._arrays["host_row_ids"])
        return upload({"host_row_ids": row_ids}, device)["host_row_ids"]


def copy_prompt(
    ops: Ops,
    row_ids: torch.Tensor,
    rows: torch.Tensor,
    memory: Sequence[torch.Tensor],
    host_rows: Sequence[torch.Tensor],
) -> None:
    """Copies the rows of a prompt to its host rows, in every layer.

    Args:
        ops: of the device.
        row_ids: [prompt_tokens] int64, host row of each.
        rows: [prompt_tokens] int64, where they lie in the engine's memory.
        memory: for each layer the engine's memory.
        host_rows: for each layer the host pool's rows.
    """
    parts = list(zip(rows.split(_ROWS_AT_A_TIME), row_ids.split(_ROWS_AT_A_TIME), strict=True))
    for source, target in zip(memory, host_rows, strict=True):
        for taken, put in parts:
            ops.spill(source.index_select(0, taken), put, target)
