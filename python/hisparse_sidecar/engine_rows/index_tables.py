"""Tables of the index side of a decode step, which stay in one place on the device."""

from collections.abc import Mapping

import numpy as np
import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import SlotRanges
from hisparse_sidecar.engine_rows.index_part import IndexPart, pages_of
from hisparse_sidecar.engine_rows.index_windows import IndexWindows
from hisparse_sidecar.engine_rows.planned_tables import Array, Arrays

_RANGES = ("window_base", "window_count", "block_table_base")
_BEGUN = ("begun_slots", "begun_blocks", "begun_entries", "begun_numbers")
_Tensors = Mapping[str, torch.Tensor]


class IndexTables:
    """One row a sequence: row i of a step is sequence i of its tables.

    Attributes:
        row_pos: [max_sequences] int32, position of each new row; -1 = padding row.
        row_block: [max_sequences] int32, page of that position; -1 = padding row.
        index_rows: [max_sequences] int64, row of the engine's index pages for each new row; rows of
            page 0 = padding row.
        windows: [max_sequences] each, window slots and slot table of each sequence.
        pooled_table: [max_sequences, max_pooled_pages] int32, pages of pooled keys of each.
        pooled_base, state_rows: [max_sequences] int64, of each sequence.
    """

    def __init__(
        self,
        part: IndexPart,
        planned: _Tensors,
        max_sequences: int,
        max_pages: int,
        device: torch.device,
    ) -> None:
        """Tables of padding.

        Args:
            part: where windows lie.
            planned: `index_blanks` and `row_pos` of `PlannedTables`.
            max_sequences: of a step.
            max_pages: most host pages of a sequence.
            device: where the tables lie.
        """

        def filled(value: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.full(shape or (max_sequences,), value, dtype=dtype, device=device)

        self._part, self._planned = part, planned
        self.row_pos, self.row_block = filled(-1, torch.int32), filled(-1, torch.int32)
        self.index_rows = filled(0, torch.int64)
        self.windows = SlotRanges(*(planned[name] for name in _RANGES))
        self.pooled_table = filled(0, torch.int32, max_sequences, pages_of(max_pages))
        self.pooled_base, self.state_rows = planned["pooled_base"], planned["state_row"]
        self._nowhere = filled(-1, torch.int32, 1)
        self._no_row = torch.arange(max_sequences, dtype=torch.int64, device=device) % PAGE_TOKENS

    def planned(self, plan: Arrays) -> dict[str, Array]:
        """What goes to the device of a step's tables `plan`, and follows from them."""
        count = len(plan["window_base"])
        pos, slot_base = plan["row_pos"][:count], plan["window_base"] + self._part.first_page
        block, number = pos // PAGE_TOKENS, plan["window_count"] - 1
        tables = {name: plan[name] for name in (*_RANGES, "pooled_base", "state_row")}
        tables |= {"window_base": slot_base, "row_block": block}
        tables["index_rows"] = (slot_base + number) * PAGE_TOKENS + pos % PAGE_TOKENS
        begins = (pos % PAGE_TOKENS == 0) & (pos > 0)
        tables["begun_slots"] = (slot_base + number)[begins]
        tables["begun_blocks"] = block[begins]
        tables["begun_entries"] = (plan["block_table_base"] + block)[begins]
        tables["begun_numbers"] = number[begins]
        return tables

    def load(self, numbers: Arrays, pooled: torch.Tensor, windows: IndexWindows) -> None:
        """Brings what is not loaded with the step's numbers to its place.

        Args:
            numbers: what `planned` gave; on the device they are loaded.
            pooled: [sequences, pages] int32, pages of pooled keys, on the device.
            windows: where pages begin.
        """
        self.pooled_table[: len(pooled), : pooled.shape[1]] = pooled
        begun = len(numbers["begun_slots"])
        if begun:
            windows.begin_pages(*(self._planned[name][:begun] for name in _BEGUN))

    def begin(self, is_real: torch.Tensor) -> None:
        """Makes all rows but `is_real` [max_sequences] bool padding; nothing is allocated."""
        torch.where(is_real, self._planned["row_pos"], self._nowhere, out=self.row_pos)
        torch.where(is_real, self._planned["row_block"], self._nowhere, out=self.row_block)
        torch.where(is_real, self._planned["index_rows"], self._no_row, out=self.index_rows)

    def windows_of(self, rows: int) -> SlotRanges:
        """Of the first `rows` sequences."""
        windows = self.windows
        return SlotRanges(
            windows.slot_base[:rows], windows.slot_count[:rows], windows.table_base[:rows]
        )


def index_blanks(rows: int) -> dict[str, Array]:
    """What the host plans of a step's index side, blank."""
    of_sequences = (*_RANGES, "pooled_base", "state_row")
    begun = ("begun_slots", "begun_entries", "begun_numbers")
    return {
        "row_block": np.full(rows, -1, np.int32),
        **{name: np.zeros(rows, np.int64) for name in ("index_rows", *of_sequences, *begun)},
        "begun_blocks": np.zeros(rows, np.int32),
    }
