"""First phases of a resolve: mark the slots of resident items, list the missing ones ascending.

Arguments that go together are tuples: `items` is (items of all rows, k, strides of rows and of
items), `rows` is (`items`, row_seq, sequence, its first and last row), `slots` the sequence's
(items, stamps, first slot, number of slots), `table` (all entries, the sequence's first), `plan`
the sequence's (items, destinations, room).

A slot's stamp s >= 0 becomes -2 - s while its item is wanted; `victims.settle_stamps` undoes it.
"""

import triton
import triton.language as tl

from hisparse_kernels.gpu.running_count import running_count


@triton.jit
def load_items(items, row, column) -> tl.tensor:
    """Items of one row; -1 outside of it."""
    items_ptr, k, row_stride, item_stride = items
    # int64: rows * items may pass 2**31
    at = tl.cast(row, tl.int64) * row_stride + column.to(tl.int64) * item_stride
    return tl.load(items_ptr + at, mask=column < k, other=-1)


@triton.jit
def mark_hits_and_list_misses(rows, slots, table, plan, BLOCK: tl.constexpr) -> tl.tensor:
    """Lists the misses of all rows in the rows' order, repeats included; returns their number."""
    items, row_seq_ptr, seq, first_row, last_row = rows
    slot_stamp_ptr, table_ptr = slots[1], table[0] + table[1]
    miss_item_ptr, _, cap = plan
    num_misses = 0
    for row in range(first_row, last_row + 1):
        if tl.load(row_seq_ptr + row) == seq:
            for start in range(0, items[1], BLOCK):
                item = load_items(items, row, start + tl.arange(0, BLOCK))
                slot = tl.load(table_ptr + item, mask=item >= 0, other=0).to(tl.int32)
                is_hit = (item >= 0) & (slot >= 0)
                stamp = tl.load(slot_stamp_ptr + slot, mask=is_hit, other=-2)
                # an item may repeat: who finds its mark leaves it
                tl.store(slot_stamp_ptr + slot, -2 - stamp, mask=stamp >= 0)
                is_miss = slot < 0
                count, num_here = running_count(is_miss)
                rank = num_misses + count - 1
                tl.store(miss_item_ptr + rank, item, mask=is_miss & (rank < cap))
                num_misses += num_here
    return num_misses


@triton.jit
def misses_ascend(plan, num_misses, BLOCK: tl.constexpr) -> tl.tensor:
    """Whether the list is what the plan needs: all misses, ascending, none twice."""
    miss_item_ptr, _, cap = plan
    listed = tl.minimum(num_misses, cap)
    ascend = tl.full([BLOCK], 1, tl.int32)
    for start in range(0, listed, BLOCK):
        rank = start + tl.arange(0, BLOCK)
        item = tl.load(miss_item_ptr + rank, mask=rank < listed, other=2147483647)
        has_left = (rank > 0) & (rank < listed)
        left = tl.load(miss_item_ptr + rank - 1, mask=has_left, other=-1)
        ascend &= (left < item).to(tl.int32)
    return (tl.min(ascend) == 1) & (num_misses <= cap)


@triton.jit
def list_distinct_misses(
    rows,
    table,
    plan,
    BLOCK: tl.constexpr,
    TABLE_GROUP: tl.constexpr,
    BLOCK_TABLE: tl.constexpr,
) -> tl.tensor:
    """Lists the misses of rows that overlap or are unordered: marks them in the table, reads it."""
    items, row_seq_ptr, seq, first_row, last_row = rows
    table_ptr = table[0] + table[1]
    lowest = tl.full([BLOCK], 2147483647, tl.int32)
    highest = tl.full([BLOCK], -1, tl.int32)
    for row in range(first_row, last_row + 1):
        if tl.load(row_seq_ptr + row) == seq:
            for start in range(0, items[1], BLOCK):
                item = load_items(items, row, start + tl.arange(0, BLOCK))
                is_miss = tl.load(table_ptr + item, mask=item >= 0, other=0) < 0
                mark = tl.full([BLOCK], -2, table_ptr.dtype.element_ty)
                tl.store(table_ptr + item, mark, mask=is_miss)
                lowest = tl.minimum(lowest, tl.where(is_miss, item, 2147483647))
                highest = tl.maximum(highest, tl.where(is_miss, item, -1))
    tl.debug_barrier()
    low, high = tl.min(lowest), tl.max(highest)
    return _collect_marks(table, low, high, plan, BLOCK_TABLE // TABLE_GROUP, TABLE_GROUP)


@triton.jit
def _collect_marks(table, low, high, plan, NUM_GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Lists the marked items from `low` to `high`, ascending, and takes their marks away."""
    slot_table_ptr, table_base = table
    miss_item_ptr, _, cap = plan
    num_misses = 0
    offset = tl.arange(0, NUM_GROUPS)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    group = tl.arange(0, NUM_GROUPS)[:, None] * GROUP
    start = (table_base + low) // GROUP * GROUP
    while start <= table_base + high:
        start_item = (start - table_base).to(tl.int32)  # negative if its group began before item 0
        item = start_item + offset  # [NUM_GROUPS, GROUP]
        # masked by group, not by entry, so that a thread reads its group at once
        is_near = start_item + group <= high
        slot = tl.load(slot_table_ptr + start + offset, mask=is_near, other=0)
        # a group at an end also holds entries of other sequences, which have marks of their own
        is_miss = (slot == -2) & (item >= low) & (item <= high)
        count = tl.sum(is_miss.to(tl.int32), 1)
        before = num_misses + tl.cumsum(count, 0) - count
        rank = before[:, None] + tl.cumsum(is_miss.to(tl.int32), 1) - 1
        tl.store(miss_item_ptr + rank, item, mask=is_miss & (rank < cap))
        none = tl.full([NUM_GROUPS, GROUP], -1, slot_table_ptr.dtype.element_ty)
        tl.store(slot_table_ptr + start + offset, none, mask=is_miss)
        num_misses += tl.sum(count)
        start += NUM_GROUPS * GROUP
    return num_misses
