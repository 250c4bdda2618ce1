"""What the block windows hold, of all groups of layers: one launch changes every group's state."""

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import SlotState
from hisparse_sidecar._core import SequenceRanges
from hisparse_sidecar.engine_rows.index_part import IndexPart
from hisparse_sidecar.tiers.device_tier import table_dtype

_PINNED = 2**31 - 2  # later than every step's stamp: such a slot is never evicted


class IndexWindows:
    """Slot states of all groups, side by side in memory; a slot is a page of the engine's.

    The last slot of a sequence is its open page's, which a step writes to: it is the same in every
    group, so the row to write is known before a layer runs.

    Attributes:
        of_group: the state of each group; items are pages of the sequence.
    """

    def __init__(
        self, part: IndexPart, num_groups: int, entries: int, device: torch.device
    ) -> None:
        """Windows that hold nothing.

        Args:
            part: where they lie.
            num_groups: groups of layers.
            entries: of a slot table, one a page.
            device: where they lie.
        """

        def empty(count: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((num_groups, count), -1, dtype=dtype, device=device)

        self._first_page = part.first_page
        self._item, self._stamp = (
            empty(part.end_page, torch.int32),
            empty(part.end_page, torch.int32),
        )
        self._table = empty(entries, table_dtype(part.slots_of_one))
        self.of_group = [
            SlotState(*state) for state in zip(self._item, self._stamp, self._table, strict=True)
        ]

    def first_page(self, ranges: SequenceRanges) -> int:
        """First page of a sequence's windows."""
        return self._first_page + ranges.window_base

    def open_page(self, ranges: SequenceRanges) -> int:
        """The page that holds a sequence's newest rows."""
        return self.first_page(ranges) + ranges.window_count - 1

    def start(self, ranges: SequenceRanges, length: int) -> None:
        """A new sequence of `length` tokens has its open page alone in its windows.

        One that is admitted for no token more and ends with a whole page has none.
        """
        first, end = self.first_page(ranges), self.open_page(ranges) + 1
        self._item[:, first:end] = -1
        self._stamp[:, first:end] = -1
        entry, block = ranges.block_table_base, length // PAGE_TOKENS
        self._table[:, entry : entry + ranges.block_table_count] = -1
        if block < ranges.block_table_count:
            self._item[:, end - 1] = block
            self._stamp[:, end - 1] = _PINNED
            self._table[:, entry + block] = ranges.window_count - 1

    def begin_pages(
        self,
        slots: torch.Tensor,
        blocks: torch.Tensor,
        entries: torch.Tensor,
        numbers: torch.Tensor,
    ) -> None:
        """Lets open slots hold new pages; the full ones that they held are on the host alone.

        Args:
            slots: [n] int64, open slots.
            blocks: [n] int32, the pages that begin.
            entries: [n] int64, these pages' entries of the slot table; of a sequence's page 0 none
                is begun, so the page before is at the entry before.
            numbers: [n] of the table's dtype, the open slots' numbers in their sequences.
        """
        self._table[:, entries - 1] = -1
        self._item[:, slots] = blocks
        self._table[:, entries] = numbers.to(self._table.dtype)
