"""Write new KV rows to their host rows, and to the hot slots that a resolve gave them."""

from dataclasses import dataclass

import torch

from hisparse_kernels.shapes import Shapes


@dataclass(frozen=True)
class HotPlaces:
    """Where spilled rows are wanted on the device, too: the slot of each item, if it has one.

    Attributes:
        rows: [num_slots, row_bytes] uint8, hot rows, written.
        item: [n] int32, item of each spilled row.
        slot_table: [entries] int16 or int32, slot of each item, relative; -1 = it has none.
        table_base: [n] int64, entry of item 0 in the slot table.
        slot_base: [n] int64, what a slot of the table is relative to.
        num_placed: [n] int32, becomes 1 where the row was placed, else 0; None = nobody asks.
    """

    rows: torch.Tensor
    item: torch.Tensor
    slot_table: torch.Tensor
    table_base: torch.Tensor
    slot_base: torch.Tensor
    num_placed: torch.Tensor | None = None

    def check(self, shapes: Shapes) -> None:
        """Raises ValueError unless every tensor is as it must be."""
        shapes.check_packed("hot.rows", self.rows, "num_slots row_bytes", torch.uint8)
        shapes.check_packed("hot.item", self.item, "n", torch.int32)
        tables = torch.int16, torch.int32
        shapes.check_packed("hot.slot_table", self.slot_table, "num_entries", *tables)
        shapes.check_packed("hot.table_base", self.table_base, "n", torch.int64)
        shapes.check_packed("hot.slot_base", self.slot_base, "n", torch.int64)
        if self.num_placed is not None:
            shapes.check_packed("hot.num_placed", self.num_placed, "n", torch.int32)


def spill(
    rows: torch.Tensor,
    dst_row_ids: torch.Tensor,
    host_rows: torch.Tensor | None,
    hot: HotPlaces | None = None,
) -> None:
    """Copies rows to the host, in place.

    Args:
        rows: [n, row_bytes] uint8, stored KV rows.
        dst_row_ids: [n] int64, row of `host_rows` for each, distinct; -1 = skip.
        host_rows: [num_pages * 64, row_bytes] uint8, written; None = another process writes them.
        hot: their places on the device, distinct; None = there are none.
    """
    shapes = Shapes()
    shapes.check("rows", rows, "n row_bytes", torch.uint8)
    shapes.check("dst_row_ids", dst_row_ids, "n", torch.int64)
    if host_rows is not None:
        shapes.check_packed("host_rows", host_rows, "num_host_rows row_bytes", torch.uint8)
    if hot is not None:
        hot.check(shapes)
    if rows.is_cuda:
        from hisparse_kernels.gpu.spill import spill_triton

        spill_triton(rows, dst_row_ids, host_rows, hot)
        return
    spill_ref(rows, dst_row_ids, host_rows, hot)


def spill_ref(
    rows: torch.Tensor,
    dst_row_ids: torch.Tensor,
    host_rows: torch.Tensor | None,
    hot: HotPlaces | None = None,
) -> None:
    kept = dst_row_ids >= 0
    if host_rows is not None:
        host_rows.index_copy_(0, dst_row_ids[kept], rows[kept])
    if hot is None:
        return
    entry = torch.where(kept, hot.table_base + hot.item, 0)
    slot = torch.where(kept, hot.slot_table[entry].long(), -1)
    placed = slot >= 0
    hot.rows.index_copy_(0, (hot.slot_base + slot)[placed], rows[placed])
    if hot.num_placed is not None:
        hot.num_placed.copy_(placed)
