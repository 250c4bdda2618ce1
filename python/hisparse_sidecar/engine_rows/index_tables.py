"""Tables of the index side of a decode step, which stay in one place on the device."""

from collections.abc import Mapping

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import SlotRanges
from hisparse_sidecar.engine_rows.index_part import IndexPart, pages_of
from hisparse_sidecar.engine_rows.index_windows import IndexWindows

_RANGES = {
    "slot_base": "window_base",
    "slot_count": "window_count",
    "table_base": "block_table_base",
}
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
        self, part: IndexPart, max_sequences: int, max_pages: int, device: torch.device
    ) -> None:
        def filled(value: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.full(shape or (max_sequences,), value, dtype=dtype, device=device)

        self._part = part
        self.row_pos, self._planned_pos = filled(-1, torch.int32), filled(-1, torch.int32)
        self.row_block, self._planned_block = filled(-1, torch.int32), filled(-1, torch.int32)
        self.index_rows, self._planned_rows = filled(0, torch.int64), filled(0, torch.int64)
        self.windows = SlotRanges(*(filled(0, torch.int64) for _ in range(3)))
        self.pooled_table = filled(0, torch.int32, max_sequences, pages_of(max_pages))
        self.pooled_base, self.state_rows = filled(0, torch.int64), filled(0, torch.int64)
        self._nowhere = filled(-1, torch.int32, 1)
        self._no_row = torch.arange(max_sequences, dtype=torch.int64, device=device) % PAGE_TOKENS

    def planned(self, plan: _Tensors) -> dict[str, torch.Tensor]:
        """What goes to the device beside a step's tables `plan`, which are on the CPU."""
        pos, count = plan["row_pos"], len(plan["window_base"])
        block = torch.div(pos, PAGE_TOKENS, rounding_mode="floor")
        rows = torch.zeros(len(pos), dtype=torch.int64)
        number = plan["window_count"] - 1
        slot = self._part.first_page + plan["window_base"] + number
        rows[:count] = slot * PAGE_TOKENS + pos[:count] % PAGE_TOKENS
        tables = {"index_rows": rows, "row_block": block.contiguous()}
        begins = ((pos[:count] % PAGE_TOKENS == 0) & (pos[:count] > 0)).nonzero()[:, 0]
        if len(begins):
            tables["begun_slots"] = slot[begins]
            tables["begun_blocks"] = block[begins]
            tables["begun_entries"] = plan["block_table_base"][begins] + block[begins]
            tables["begun_numbers"] = number[begins]
        return tables

    def load(self, found: _Tensors, beside: _Tensors, windows: IndexWindows) -> None:
        """Brings tables to their place.

        Args:
            found: the step's, on the device.
            beside: what `planned` gave, on the device.
            windows: where pages begin.
        """
        self._planned_pos.copy_(found["row_pos"])
        self._planned_block.copy_(beside["row_block"])
        self._planned_rows.copy_(beside["index_rows"])
        count = len(found["window_base"])
        for name, planned in _RANGES.items():
            getattr(self.windows, name)[:count] = found[planned]
        self.windows.slot_base[:count] += self._part.first_page
        pooled = found["pooled_table"]
        self.pooled_table[:count, : pooled.shape[1]] = pooled
        self.pooled_base[:count] = found["pooled_base"]
        self.state_rows[:count] = found["state_row"]
        if "begun_slots" in beside:
            names = ("slots", "blocks", "entries", "numbers")
            windows.begin_pages(*(beside[f"begun_{name}"] for name in names))

    def begin(self, is_real: torch.Tensor) -> None:
        """Makes all rows but `is_real` [max_sequences] bool padding; nothing is allocated."""
        torch.where(is_real, self._planned_pos, self._nowhere, out=self.row_pos)
        torch.where(is_real, self._planned_block, self._nowhere, out=self.row_block)
        torch.where(is_real, self._planned_rows, self._no_row, out=self.index_rows)

    def windows_of(self, rows: int) -> SlotRanges:
        """Of the first `rows` sequences."""
        windows = self.windows
        return SlotRanges(
            windows.slot_base[:rows], windows.slot_count[:rows], windows.table_base[:rows]
        )
