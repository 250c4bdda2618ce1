"""Where the blocks of sequences lie in a block window."""

from dataclasses import dataclass

import torch

from hisparse_kernels.shapes import Shapes


@dataclass(frozen=True)
class WindowSlots:
    """The table that `resolve` keeps, and a place for what is looked up in it.

    Attributes:
        slot_table: [entries] int16 or int32, slot of each block, relative to its sequence's first;
            -1 = not in the window.
        table_base: [num_seqs] int64, entry of block 0.
        slot_base: [num_seqs] int64, first slot.
        out: [rows, num_kept] int32, contiguous: becomes the slot of each block of a list, -1 where
            there is none.
        num_slots: slots that there are: a greater number in the table is none; None = the table
            has no such number.
    """

    slot_table: torch.Tensor
    table_base: torch.Tensor
    slot_base: torch.Tensor
    out: torch.Tensor
    num_slots: int | None = None

    def check(self, shapes: Shapes) -> None:
        """Raises ValueError unless every tensor is as it must be."""
        kinds = torch.int16, torch.int32
        shapes.check_packed("slots.slot_table", self.slot_table, "entries", *kinds)
        shapes.check_packed("slots.table_base", self.table_base, "num_seqs", torch.int64)
        shapes.check_packed("slots.slot_base", self.slot_base, "num_seqs", torch.int64)
        shapes.check_packed("slots.out", self.out, "rows num_kept", torch.int32)
