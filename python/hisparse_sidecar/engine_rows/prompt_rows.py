"""A prompt's rows on their way from the engine's pages to the host."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hisparse_kernels.backends import Ops
from hisparse_sidecar.build_step import table_views
from hisparse_sidecar.uploads import upload

if TYPE_CHECKING:
    from hisparse_sidecar._core import StepTables

_ROWS_AT_A_TIME = 32768


def copy_prompt(
    ops: Ops,
    plan: "StepTables",
    rows: torch.Tensor,
    memory: Sequence[torch.Tensor],
    host_rows: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """Copies the rows of a plan's one sequence to its host rows, in every layer.

    Args:
        ops: of the device.
        plan: of the prompt's rows.
        rows: [prompt_tokens] int64, where they lie in the engine's memory.
        memory: for each layer the engine's memory.
        host_rows: for each layer the host pool's rows.

    Returns:
        Tensors to hold until the current stream has done what this launches.
    """
    planned = table_views(torch.frombuffer(plan[0], dtype=torch.uint8), plan[1])
    row_ids = upload({"host_row_ids": planned["host_row_ids"]}, rows.device)["host_row_ids"]
    parts = list(zip(rows.split(_ROWS_AT_A_TIME), row_ids.split(_ROWS_AT_A_TIME), strict=True))
    for source, target in zip(memory, host_rows, strict=True):
        for taken, put in parts:
            ops.spill(source.index_select(0, taken), put, target)
    return [row_ids]
