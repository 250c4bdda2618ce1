"""Give every wanted item a slot, on the GPU: one program resolves one sequence, phase by phase.

A sequence with one row, as in decode, is resolved in registers where it can be (`resolve_row.py`).
Else phases hand over in global memory, in the state, the plan and the slot table themselves; a
barrier stands wherever threads read what others wrote.
"""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.misses import (
    list_distinct_misses,
    load_items,
    mark_hits_and_list_misses,
    misses_ascend,
)
from hisparse_kernels.gpu.overlap import begin_overlapped, overlap_options
from hisparse_kernels.gpu.resolve_row import LEFT, resolve_single_row
from hisparse_kernels.gpu.victims import claim_victims, count_slots, settle_stamps
from hisparse_kernels.resolve import MissPlan, SlotRanges, SlotState

_MAX_BLOCK_ITEMS = 2048
_MAX_BLOCK_SLOTS = 8192
_BLOCK_ROWS = 256
_FEW_ROWS = 32  # each warp looks through so many by itself
_SLOTS_PER_WARP = 256
_MAX_WARPS = 16
_TABLE_GROUP = 16  # entries that one thread reads at once: 32 bytes of a 16-bit table
_RELEASE_PROGRAMS = 32
_RELEASE_BLOCK = 1024


def resolve_triton(
    items: torch.Tensor,
    row_seq: torch.Tensor,
    state: SlotState,
    ranges: SlotRanges,
    stamps: torch.Tensor,
    plan: MissPlan,
    out: torch.Tensor,
) -> torch.Tensor:
    (num_rows, k), (num_seqs, cap) = items.shape, plan.miss_item.shape
    block_items = _power_of_two(k, 32, _MAX_BLOCK_ITEMS)
    block_slots = _power_of_two(_likely_slots(plan, state, k), _SLOTS_PER_WARP, _MAX_BLOCK_SLOTS)
    num_warps = min(max(block_slots // _SLOTS_PER_WARP, 4), _MAX_WARPS)
    table = state.slot_table
    aligned = table.numel() % _TABLE_GROUP == 0 and table.data_ptr() % 16 == 0
    _resolve_kernel[(num_seqs + 1,)](
        items,
        row_seq,
        state.slot_item,
        state.slot_stamp,
        table,
        ranges.slot_base,
        ranges.slot_count,
        ranges.table_base,
        stamps,
        plan.miss_item,
        plan.miss_dst,
        plan.miss_count,
        plan.item_count,
        out,
        num_rows,
        k,
        cap,
        items.stride(0),
        items.stride(1),
        MAX_SLOT=torch.iinfo(table.dtype).max,
        ROW_FITS=k <= block_items,
        BLOCK_ROWS=_FEW_ROWS if num_rows <= _FEW_ROWS else _BLOCK_ROWS,
        BLOCK_ITEMS=block_items,
        BLOCK_SLOTS=block_slots,
        TABLE_GROUP=_TABLE_GROUP if aligned else 1,
        BLOCK_TABLE=num_warps * 32 * _TABLE_GROUP,
        BLOCK_MISSES=num_warps * 32,
        num_warps=num_warps,
        enable_fp_fusion=False,
        **overlap_options(),
    )
    return out


def release_items_triton(state: SlotState, ranges: SlotRanges, seq: int, first_item: int) -> None:
    _release_kernel[(_RELEASE_PROGRAMS,)](
        state.slot_item,
        state.slot_stamp,
        state.slot_table,
        ranges.slot_base,
        ranges.slot_count,
        ranges.table_base,
        seq,
        first_item,
        BLOCK=_RELEASE_BLOCK,
        enable_fp_fusion=False,
    )


def _likely_slots(plan: MissPlan, state: SlotState, k: int) -> int:
    """Slots of a sequence, for all that is known here; more than a block are read in parts."""
    num_seqs, cap = plan.miss_item.shape
    # a plan may be short of room for all slots: a hot buffer holds a few selections
    return max(cap, min(4 * k, state.slot_item.numel() // max(num_seqs, 1)))


def _power_of_two(count: int, least: int, most: int) -> int:
    return int(min(max(triton.next_power_of_2(count), least), most))


@triton.jit(do_not_specialize=["num_rows", "k", "cap", "row_stride"])
def _resolve_kernel(
    items_ptr,
    row_seq_ptr,
    slot_item_ptr,
    slot_stamp_ptr,
    slot_table_ptr,
    slot_base_ptr,
    slot_count_ptr,
    table_base_ptr,
    stamps_ptr,
    miss_item_ptr,
    miss_dst_ptr,
    miss_count_ptr,
    item_count_ptr,
    out_ptr,
    num_rows,
    k,
    cap,
    row_stride,
    item_stride,
    MAX_SLOT: tl.constexpr,
    ROW_FITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_ITEMS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    TABLE_GROUP: tl.constexpr,
    BLOCK_TABLE: tl.constexpr,
    BLOCK_MISSES: tl.constexpr,
):
    begin_overlapped()
    seq = tl.program_id(0)
    num_seqs = tl.num_programs(0) - 1
    if seq == num_seqs:
        _clear_padding_rows(row_seq_ptr, out_ptr, num_rows, k, BLOCK_ROWS, BLOCK_ITEMS)
    else:
        slot_base = tl.load(slot_base_ptr + seq)  # int64, as all bases
        slot_count = tl.load(slot_count_ptr + seq).to(tl.int32)
        # int64: sequences * slots may pass 2**31
        plan_row = tl.cast(seq, tl.int64) * cap
        items = (items_ptr, k, row_stride, item_stride)
        slots = (slot_item_ptr + slot_base, slot_stamp_ptr + slot_base, slot_base, slot_count)
        table = (slot_table_ptr, tl.load(table_base_ptr + seq))
        stamps = (tl.load(stamps_ptr), tl.load(stamps_ptr + 1))
        plan = (miss_item_ptr + plan_row, miss_dst_ptr + plan_row, cap)
        num_misses, num_items, rows = resolve_single_row(
            (items, row_seq_ptr, seq, num_rows),
            slots,
            table,
            stamps,
            plan,
            out_ptr,
            MAX_SLOT,
            ROW_FITS,
            BLOCK_ROWS,
            BLOCK_ITEMS,
            BLOCK_SLOTS,
        )
        if num_misses == LEFT:
            num_misses, num_items = _resolve_sequence(
                rows,
                slots,
                table,
                stamps,
                plan,
                out_ptr,
                MAX_SLOT,
                BLOCK_ITEMS,
                BLOCK_SLOTS,
                TABLE_GROUP,
                BLOCK_TABLE,
                BLOCK_MISSES,
            )
        tl.store(miss_count_ptr + seq, num_misses)
        tl.store(item_count_ptr + seq, num_items)


@triton.jit
def _resolve_sequence(
    rows,
    slots,
    table,
    stamps,
    plan,
    out_ptr,
    MAX_SLOT: tl.constexpr,
    BLOCK_ITEMS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    TABLE_GROUP: tl.constexpr,
    BLOCK_TABLE: tl.constexpr,
    BLOCK_MISSES: tl.constexpr,
):
    """Resolves the sequence's rows; returns what its `miss_count` and `item_count` become."""
    stamp, protect_since = stamps
    num_misses = mark_hits_and_list_misses(rows, slots, table, plan, BLOCK_ITEMS)
    tl.debug_barrier()
    if not misses_ascend(plan, num_misses, BLOCK_MISSES):
        num_misses = list_distinct_misses(rows, table, plan, BLOCK_ITEMS, TABLE_GROUP, BLOCK_TABLE)
    num_hits, num_free, oldest = count_slots(slots, protect_since, BLOCK_SLOTS)
    slot_count, cap = slots[3], plan[2]
    has_room = (num_misses <= num_free) & (num_misses <= cap)
    served = has_room & (slot_count - 1 <= MAX_SLOT) & (stamp >= 0)
    num_claims = tl.where(served, num_misses, 0)
    if num_claims > 0:
        claim_victims(
            slots,
            table,
            plan,
            num_claims,
            oldest,
            stamp,
            protect_since,
            BLOCK_SLOTS,
            BLOCK_MISSES,
        )
    tl.debug_barrier()
    settle_stamps(slots, stamp, served, BLOCK_SLOTS)
    _write_row_slots(rows, slots, table, served, out_ptr, BLOCK_ITEMS)
    return tl.where(served, num_misses, -1), tl.where(served, num_misses + num_hits, 0)


@triton.jit
def _write_row_slots(rows, slots, table, served, out_ptr, BLOCK: tl.constexpr):
    items, row_seq_ptr, seq, first_row, last_row = rows
    k = items[1]
    slot_base, table_ptr = slots[2], table[0] + table[1]
    for row in range(first_row, last_row + 1):
        if tl.load(row_seq_ptr + row) == seq:
            for start in range(0, k, BLOCK):
                column = start + tl.arange(0, BLOCK)
                item = tl.where(served, load_items(items, row, column), -1)
                slot = slot_base + tl.load(table_ptr + item, mask=item >= 0, other=-1)
                slot = tl.where(item >= 0, slot, -1).to(tl.int32)
                tl.store(out_ptr + tl.cast(row, tl.int64) * k + column, slot, mask=column < k)


@triton.jit
def _clear_padding_rows(
    row_seq_ptr, out_ptr, num_rows, k, BLOCK_ROWS: tl.constexpr, BLOCK_ITEMS: tl.constexpr
):
    for start in range(0, num_rows, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        is_padding = tl.load(row_seq_ptr + row, mask=row < num_rows, other=0) < 0
        first = tl.min(tl.where(is_padding, row, 2147483647))
        last = tl.max(tl.where(is_padding, row, -1))
        for padding in range(first, last + 1):
            if tl.load(row_seq_ptr + padding) < 0:
                for left in range(0, k, BLOCK_ITEMS):
                    column = left + tl.arange(0, BLOCK_ITEMS)
                    none = tl.full([BLOCK_ITEMS], -1, tl.int32)
                    tl.store(
                        out_ptr + tl.cast(padding, tl.int64) * k + column, none, mask=column < k
                    )


@triton.jit(do_not_specialize=["seq", "first_item"])
def _release_kernel(
    slot_item_ptr,
    slot_stamp_ptr,
    slot_table_ptr,
    slot_base_ptr,
    slot_count_ptr,
    table_base_ptr,
    seq,
    first_item,
    BLOCK: tl.constexpr,
):
    slot_base = tl.load(slot_base_ptr + seq)  # int64, as all bases
    slot_count = tl.load(slot_count_ptr + seq).to(tl.int32)
    table_ptr = slot_table_ptr + tl.load(table_base_ptr + seq)
    step = tl.num_programs(0) * BLOCK
    for start in range(tl.program_id(0) * BLOCK, slot_count, step):
        slot = start + tl.arange(0, BLOCK)
        item = tl.load(slot_item_ptr + slot_base + slot, mask=slot < slot_count, other=-1)
        is_freed = item >= first_item
        none = tl.full([BLOCK], -1, tl.int32)
        tl.store(table_ptr + item, none.to(table_ptr.dtype.element_ty), mask=is_freed)
        tl.store(slot_item_ptr + slot_base + slot, none, mask=is_freed)
        tl.store(slot_stamp_ptr + slot_base + slot, none, mask=is_freed)
