"""What the hot slots hold, of all groups of layers: one launch changes every group's state."""

import torch

from hisparse_kernels.resolve import SlotState
from hisparse_sidecar._core import SequenceRanges
from hisparse_sidecar.tiers.device_tier import table_dtype


class HotStates:
    """Slot states of all groups, side by side in memory.

    Attributes:
        of_group: the state of each group.
    """

    def __init__(
        self, num_groups: int, num_slots: int, entries: int, slots_of_one: int, device: torch.device
    ) -> None:
        """States of slots that hold nothing.

        Args:
            num_groups: groups of layers.
            num_slots: slots of all sequences, numbered as rows of the engine's memory.
            entries: of a slot table, one a token.
            slots_of_one: most slots of a sequence.
            device: where they lie.
        """

        def empty(count: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((num_groups, count), -1, dtype=dtype, device=device)

        self._item, self._stamp = empty(num_slots, torch.int32), empty(num_slots, torch.int32)
        self._table = empty(entries, table_dtype(slots_of_one))
        self.of_group = [
            SlotState(*state) for state in zip(self._item, self._stamp, self._table, strict=True)
        ]

    def start(self, ranges: SequenceRanges, base: int, length: int, stamp: int) -> None:
        """A new sequence's newest rows are in its first slots, in every group.

        Args:
            ranges: of the sequence.
            base: its first slot.
            length: its tokens.
            stamp: when these rows were used, as far as victims are chosen.
        """
        count, device = min(ranges.slot_count, length), self._item.device
        first, table_base = length - count, ranges.token_table_base
        self._item[:, base : base + ranges.slot_count] = -1
        self._stamp[:, base : base + ranges.slot_count] = -1
        self._table[:, table_base : table_base + ranges.token_table_count] = -1
        positions = torch.arange(first, length, dtype=torch.int32, device=device)
        self._item[:, base : base + count] = positions
        self._stamp[:, base : base + count] = stamp
        slots = torch.arange(count, dtype=self._table.dtype, device=device)
        self._table[:, table_base + first : table_base + length] = slots

    def bytes_of(self, num_slots: int, entries: int) -> int:
        """Bytes of so many slots' items and stamps and so many table entries, of all groups."""
        of_slot = self._item.element_size() + self._stamp.element_size()
        return len(self.of_group) * (num_slots * of_slot + entries * self._table.element_size())
