"""Tables of a decode step that stay in one place on the device, for graphs that were captured."""

from typing import TYPE_CHECKING

import torch

from hisparse_kernels.resolve import SlotRanges
from hisparse_sidecar.build_step import table_views
from hisparse_sidecar.engine_rows.index_tables import IndexTables
from hisparse_sidecar.engine_rows.index_windows import IndexWindows
from hisparse_sidecar.engine_rows.layout import EngineRowsConfig
from hisparse_sidecar.step import claim_stamp
from hisparse_sidecar.uploads import upload

if TYPE_CHECKING:
    from hisparse_sidecar._core import StepTables

_RANGES = {"slot_base": "slot_base", "slot_count": "slot_count", "table_base": "token_table_base"}


class FixedTables:
    """One row a sequence: row i of a step is sequence i of its tables.

    Attributes:
        row_seq: [max_sequences] int32, i in row i of a step; -1 = padding row.
        host_row_ids: [max_sequences] int64, host row of each new row that is written here; -1 =
            padding row, and every row where another rank writes the host pool.
        first_pos: [max_sequences] int32, position of each new row.
        first_row: [max_sequences] int32, row of the engine's memory that holds it.
        ranges: [max_sequences] each, hot slots and slot table of each sequence.
        page_table: [max_sequences, max_pages] int32, host pages of each sequence.
        stamps: [2] int32, of what the step selects.
    """

    def __init__(
        self, config: EngineRowsConfig, device: torch.device, *, writes_host: bool = True
    ) -> None:
        rows, self._writes_host = config.max_sequences, writes_host

        def filled(value: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.full(shape or (rows,), value, dtype=dtype, device=device)

        self._device, self._hot_row = device, config.hot_row
        self.row_seq, self._planned_seq = filled(-1, torch.int32), filled(-1, torch.int32)
        self.host_row_ids = filled(-1, torch.int64)
        self._planned_row_ids = filled(-1, torch.int64)
        self.first_pos = filled(0, torch.int32)
        numbers = torch.arange(rows, dtype=torch.int32, device=device)
        self.first_row = numbers + config.first_row
        self.ranges = SlotRanges(*(filled(0, torch.int64) for _ in range(3)))
        self.page_table = filled(0, torch.int32, rows, config.max_pages)
        self.stamps = filled(0, torch.int32, 2)
        self._numbers, self._is_real = numbers, filled(False, torch.bool)
        self._none_seq, self._none_row = filled(-1, torch.int32, 1), filled(-1, torch.int64, 1)
        self._num_planned, self._num_rows = filled(0, torch.int32, 1), filled(0, torch.int32, 1)
        self._index: IndexTables | None = None
        if config.index is not None:
            self._index = IndexTables(config.index, rows, config.max_pages, device)

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
        content, tables = torch.frombuffer(plan[0], dtype=torch.uint8), plan[1]
        stamps = torch.full((2,), claim_stamp(number), dtype=torch.int32)
        beside = {"content": content, "stamps": stamps}
        if self._index is not None:
            beside |= self._index.planned(table_views(content, tables))
        uploaded = upload(beside, self._device)
        found = table_views(uploaded["content"], tables)
        if self._index is not None:
            assert windows is not None
            self._index.load(found, uploaded, windows)
        self._planned_seq.copy_(found["row_seq"])
        if self._writes_host:
            self._planned_row_ids.copy_(found["host_row_ids"])
        self.first_pos.copy_(found["row_pos"])
        self.stamps.copy_(uploaded["stamps"])
        pages = found["page_table"]
        self.page_table[: pages.shape[0], : pages.shape[1]] = pages
        for name, planned in _RANGES.items():
            getattr(self.ranges, name)[: pages.shape[0]] = found[planned]
        self.ranges.slot_base[: pages.shape[0]] += self._hot_row
        self._num_planned.fill_(pages.shape[0])

    def begin(self, num_real_rows: torch.Tensor) -> None:
        """Makes rows from `num_real_rows` [1] int32 on padding, and all of a step that has ended.

        Nothing is allocated.
        """
        torch.minimum(num_real_rows, self._num_planned, out=self._num_rows)
        torch.lt(self._numbers, self._num_rows, out=self._is_real)
        torch.where(self._is_real, self._planned_seq, self._none_seq, out=self.row_seq)
        torch.where(self._is_real, self._planned_row_ids, self._none_row, out=self.host_row_ids)
        if self._index is not None:
            self._index.begin(self._is_real)

    def end(self) -> None:
        """Makes every row of the passes before the next `load` padding: the step has run."""
        self._num_planned.zero_()

    def ranges_of(self, rows: int) -> SlotRanges:
        """Of the first `rows` sequences."""
        ranges = self.ranges
        return SlotRanges(
            ranges.slot_base[:rows], ranges.slot_count[:rows], ranges.table_base[:rows]
        )
