"""Where the blocks of each row's list lie in the block window."""

import torch

from hisparse_kernels.shapes import Shapes
from hisparse_kernels.window_slots import WindowSlots


def look_up_blocks(
    block_ids: torch.Tensor, row_seq: torch.Tensor, slots: WindowSlots
) -> torch.Tensor:
    """Writes the slot of each listed block to `slots.out`, and returns it; changes no slot.

    Args:
        block_ids: [rows, num_kept] int32, contiguous; -1 = none.
        row_seq: [rows] int32, sequence of each row; -1 = padding row.
        slots: where the blocks lie, and a place for the result.

    Returns:
        [rows, num_kept] int32, -1 for no block and for one that has no slot.
    """
    shapes = Shapes()
    shapes.check_packed("block_ids", block_ids, "rows num_kept", torch.int32)
    shapes.check("row_seq", row_seq, "rows", torch.int32)
    slots.check(shapes)
    if block_ids.is_cuda:
        from hisparse_kernels.gpu.look_up_blocks import look_up_blocks_triton

        return look_up_blocks_triton(block_ids, row_seq, slots)
    return look_up_blocks_ref(block_ids, row_seq, slots)


def look_up_blocks_ref(
    block_ids: torch.Tensor, row_seq: torch.Tensor, slots: WindowSlots
) -> torch.Tensor:
    """See `look_up_blocks`; plain PyTorch."""
    seq = row_seq.clamp(min=0).long()
    listed = (block_ids >= 0) & (row_seq >= 0)[:, None]
    entries = torch.where(listed, slots.table_base[seq][:, None] + block_ids, 0)
    found = slots.slot_table[entries].int()
    absolute = found + slots.slot_base[seq][:, None].int()
    is_slot = listed & (found >= 0)
    if slots.num_slots is not None:
        is_slot &= absolute < slots.num_slots
    return slots.out.copy_(torch.where(is_slot, absolute, -1))
