"""Tables of a decode step that stay in one place on the device, for graphs that were captured."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from hisparse_kernels.resolve import SlotRanges
from hisparse_sidecar.engine_rows.index_part import pages_of
from hisparse_sidecar.engine_rows.index_tables import IndexTables, index_blanks
from hisparse_sidecar.engine_rows.index_windows import IndexWindows
from hisparse_sidecar.engine_rows.layout import EngineRowsConfig
from hisparse_sidecar.engine_rows.planned_tables import (
    Array,
    PlannedTables,
    matrix_bytes,
    planned_arrays,
)
from hisparse_sidecar.step.step import claim_stamp

if TYPE_CHECKING:
    from hisparse_sidecar._core import StepTables

_OF_ROWS = ("row_seq", "row_pos", "host_row_ids")
_RANGES = ("slot_base", "slot_count", "token_table_base")


class FixedTables:
    """One row a sequence: row i of a step is sequence i of its tables.

    Attributes:
        row_seq: [max_sequences] int32, i in row i of a step; -1 = padding row.
        host_row_ids: [max_sequences] int64, host row of each new row; -1 = padding row.
        written_row_ids: the same where this rank writes the host pool; else all are -1.
        first_pos: [max_sequences] int32, position of each new row; -1 = padding row.
        first_row: [max_sequences] int32, row of the engine's memory that holds it.
        ranges: [max_sequences] each, hot slots and slot table of each sequence.
        page_table: [max_sequences, max_pages] int32, host pages of each sequence.
        stamps: [2] int32, of what the step selects.
    """

    def __init__(
        self, config: EngineRowsConfig, device: torch.device, *, writes_host: bool = True
    ) -> None:
        rows, pages = config.max_sequences, config.max_pages

        def filled(value: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.full(shape or (rows,), value, dtype=dtype, device=device)

        blanks, room = _blanks(rows), matrix_bytes(rows, pages)
        if config.index is not None:
            blanks |= index_blanks(rows)
            room += matrix_bytes(rows, pages_of(pages))
        self._hot_row, self._planned = config.hot_row, PlannedTables(blanks, room, device)
        planned = self._planned.tables
        self.row_seq, self.host_row_ids = filled(-1, torch.int32), filled(-1, torch.int64)
        self.written_row_ids = self.host_row_ids if writes_host else filled(-1, torch.int64)
        self.first_pos, self.stamps = planned["row_pos"], planned["stamps"]
        numbers = torch.arange(rows, dtype=torch.int32, device=device)
        self.first_row = numbers + config.first_row
        self.ranges = SlotRanges(*(planned[name] for name in _RANGES))
        self.page_table = filled(0, torch.int32, rows, pages)
        self._numbers, self._is_real = numbers, filled(False, torch.bool)
        self._none_seq, self._none_row = filled(-1, torch.int32, 1), filled(-1, torch.int64, 1)
        self._num_rows = filled(0, torch.int32, 1)
        self._index: IndexTables | None = None
        if config.index is not None:
            self._index = IndexTables(config.index, planned, rows, pages, device)

    @property
    def index(self) -> IndexTables:
        """Tables of the index side, where the configuration has one."""
        assert self._index is not None
        return self._index

    def load(self, plan: "StepTables", number: int, windows: IndexWindows | None = None) -> None:
        """Brings a step's tables to their place, in one transfer that the host does not wait for.

        Args:
            plan: of as many rows as fit, one a sequence.
            number: the step's, which gives its stamps.
            windows: of the index side, where the configuration has one.
        """
        found = planned_arrays(plan)
        count = len(found["slot_base"])
        numbers = {name: found[name] for name in _OF_ROWS} | {name: found[name] for name in _RANGES}
        numbers["slot_base"] = found["slot_base"] + self._hot_row
        numbers["stamps"] = np.full(2, claim_stamp(number), np.int32)
        numbers["num_planned"] = np.array([count], np.int32)
        if self._index is None:
            matrices = self._planned.load(numbers, {"page_table": found["page_table"]})
        else:
            assert windows is not None
            numbers |= self._index.planned(found)
            names = "page_table", "pooled_table"
            matrices = self._planned.load(numbers, {name: found[name] for name in names})
            self._index.load(numbers, matrices["pooled_table"], windows)
        pages = matrices["page_table"]
        self.page_table[:count, : pages.shape[1]] = pages

    def begin(self, num_real_rows: torch.Tensor) -> None:
        """Makes rows from `num_real_rows` [1] int32 on padding, and all of a step that has ended.

        Nothing is allocated.
        """
        planned = self._planned.tables
        torch.minimum(num_real_rows, planned["num_planned"], out=self._num_rows)
        torch.lt(self._numbers, self._num_rows, out=self._is_real)
        torch.where(self._is_real, planned["row_seq"], self._none_seq, out=self.row_seq)
        torch.where(self._is_real, planned["host_row_ids"], self._none_row, out=self.host_row_ids)
        if self._index is not None:
            self._index.begin(self._is_real)

    def end(self) -> None:
        """Makes every row of the passes before the next `load` padding: the step has run."""
        self._planned.tables["num_planned"].zero_()

    def ranges_of(self, rows: int) -> SlotRanges:
        """Of the first `rows` sequences."""
        ranges = self.ranges
        return SlotRanges(
            ranges.slot_base[:rows], ranges.slot_count[:rows], ranges.table_base[:rows]
        )


def _blanks(rows: int) -> dict[str, Array]:
    """What the host plans of a step, blank: no row, no slot, no sequence."""
    return {
        "row_seq": np.full(rows, -1, np.int32),
        "row_pos": np.full(rows, -1, np.int32),
        "host_row_ids": np.full(rows, -1, np.int64),
        **{name: np.zeros(rows, np.int64) for name in _RANGES},
        "stamps": np.zeros(2, np.int32),
        "num_planned": np.zeros(1, np.int32),
    }
