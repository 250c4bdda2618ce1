"""Look the slots of listed blocks up."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.block_topm import slot_arguments
from hisparse_kernels.window_slots import WindowSlots

_BLOCK = 1024


def look_up_blocks_triton(
    block_ids: torch.Tensor, row_seq: torch.Tensor, slots: WindowSlots
) -> torch.Tensor:
    """See `look_up_blocks`."""
    rows, num_kept = block_ids.shape
    if block_ids.numel():
        grid = rows, triton.cdiv(num_kept, _BLOCK)
        arguments = row_seq.contiguous(), num_kept, *slot_arguments(slots)
        _look_up_blocks_kernel[grid](block_ids, *arguments, BLOCK=_BLOCK, enable_fp_fusion=False)
    return slots.out


@triton.jit(do_not_specialize=["num_kept", "num_slots"])
def _look_up_blocks_kernel(
    ids_ptr,
    seq_ptr,
    num_kept,
    table_ptr,
    table_base_ptr,
    slot_base_ptr,
    slots_ptr,
    num_slots,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    entry = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    seq = tl.load(seq_ptr + row)
    held = tl.maximum(seq, 0)
    listed = entry < tl.where(seq < 0, 0, num_kept)
    block = tl.load(ids_ptr + row * num_kept + entry, mask=listed, other=-1)
    first = tl.load(table_base_ptr + held)
    slot = tl.load(table_ptr + first + block, mask=block >= 0, other=-1).to(tl.int64)
    slot = tl.where(slot < 0, -1, slot + tl.load(slot_base_ptr + held))
    if num_slots is not None:
        slot = tl.where(slot < num_slots, slot, -1)
    tl.store(slots_ptr + row * num_kept + entry, slot.to(tl.int32), mask=entry < num_kept)
