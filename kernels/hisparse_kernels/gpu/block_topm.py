"""Keep the best blocks of each row, always the first and the newest; look their slots up."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.overlap import begin_overlapped, overlap_options
from hisparse_kernels.gpu.select import best_columns, row_options
from hisparse_kernels.window_slots import WindowSlots


def block_topm_triton(
    block_logits: torch.Tensor,
    newest_block: torch.Tensor,
    num_kept: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `block_topm`. One program for each row."""
    rows = len(block_logits)
    if out is None:
        out = newest_block.new_empty(rows, num_kept)
    if rows:
        choose_blocks(block_logits, newest_block.contiguous(), None, num_kept, out, None)
    return out


def choose_blocks(
    block_logits: torch.Tensor,
    newest_block: torch.Tensor,
    row_seq: torch.Tensor | None,
    num_kept: int,
    out: torch.Tensor,
    slots: WindowSlots | None,
) -> None:
    """`block_topm` of at least one row; with `slots` also the slot of each block."""
    rows, num_blocks = block_logits.shape
    _block_topm_kernel[(rows,)](
        block_logits,
        *block_logits.stride(),
        num_blocks,
        newest_block,
        row_seq,
        num_kept,
        out,
        *slot_arguments(slots),
        KEPT_BLOCK=triton.next_power_of_2(num_kept),
        **row_options(rows, num_blocks, num_kept, forced=True),
        **overlap_options(),
    )


def slot_arguments(slots: WindowSlots | None) -> tuple[torch.Tensor | int | None, ...]:
    """Table, both bases, place of the result, slots; all None where no slots are wanted."""
    if slots is None:
        return (None,) * 5
    return slots.slot_table, slots.table_base, slots.slot_base, slots.out, slots.num_slots


@triton.jit(do_not_specialize=["num_blocks", "num_kept", "num_slots"])
def _block_topm_kernel(
    logits_ptr,
    row_stride,
    column_stride,
    num_blocks,
    newest_ptr,
    seq_ptr,
    num_kept,
    out_ptr,
    table_ptr,
    table_base_ptr,
    slot_base_ptr,
    slots_ptr,
    num_slots,
    KEPT_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_BEST: tl.constexpr,
    WRITE_BLOCK: tl.constexpr,
    WARPS: tl.constexpr,
):
    begin_overlapped()
    row = tl.program_id(0).to(tl.int64)
    newest = tl.load(newest_ptr + row)
    out_ptr += row * num_kept
    best_columns(
        logits_ptr + row * row_stride,
        column_stride,
        tl.minimum(newest + 1, num_blocks),
        newest,
        num_kept,
        None,
        out_ptr,
        True,
        1,
        BLOCK,
        BLOCK_BEST,
        WRITE_BLOCK,
        WARPS,
    )
    if table_ptr is not None:
        look_slots_up(
            out_ptr,
            num_kept,
            tl.load(seq_ptr + row),
            table_ptr,
            table_base_ptr,
            slot_base_ptr,
            slots_ptr + row * num_kept,
            num_slots,
            KEPT_BLOCK,
        )


@triton.jit
def look_slots_up(
    blocks_ptr,
    num_kept,
    seq,
    table_ptr,
    table_base_ptr,
    slot_base_ptr,
    slots_ptr,
    num_slots,
    KEPT_BLOCK: tl.constexpr,
) -> None:
    """Writes the slot of each block that this program has written at `blocks_ptr`; -1 = none."""
    # before the barrier: these do not wait for the blocks
    table_base = tl.load(table_base_ptr + tl.maximum(seq, 0))
    slot_base = tl.load(slot_base_ptr + tl.maximum(seq, 0))
    tl.debug_barrier()
    entry = tl.arange(0, KEPT_BLOCK)
    num_listed = tl.where(seq < 0, 0, num_kept)
    block = tl.load(blocks_ptr + entry, mask=entry < num_listed, other=-1)
    slot = tl.load(table_ptr + table_base + block, mask=block >= 0, other=-1).to(tl.int64)
    slot = tl.where(slot < 0, -1, slot + slot_base)
    if num_slots is not None:
        slot = tl.where(slot < num_slots, slot, -1)
    tl.store(slots_ptr + entry, slot.to(tl.int32), mask=entry < num_kept)
