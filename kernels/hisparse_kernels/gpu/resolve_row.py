"""Resolve a sequence that asks with one row, as in decode: stamps stay in registers.

Loads that wait for each other, each a round trip to the L2 cache or beyond:

1. the sequence's ranges, the call's stamps, and the row of the sequence's own number, which is the
   wanted one as a rule (else its row is searched for, and loaded now);
2. entries of the items in the table, and beside them the stamps of all slots. Where nothing misses
   and the row ascends, this is the last: what is left are stores;
3. stamps again, after a barrier: hits have marked their slots meanwhile;
4. destinations of the misses, after a barrier, and beside them what the victims held.

Items and slots are scattered, so one load or store of all items costs as much as a round trip:
there are two, of the entries and of the hits' stamps. What the tuples hold is said in `misses.py`.
"""

import triton
import triton.language as tl

from hisparse_kernels.gpu.misses import load_items
from hisparse_kernels.gpu.running_count import running_count
from hisparse_kernels.gpu.victims import rank_oldest

LEFT = tl.constexpr(-2)  # in place of a number of misses: the row is left to the general phases
_MARK = tl.constexpr(-2)  # stamp of a wanted slot; what it was is in a register
_NO_SLOT = tl.constexpr(-2)  # stamp in a register beyond the last slot
_LAST = tl.constexpr(2147483647)  # later than every stamp that may be evicted
_HIGH = tl.constexpr(65536)  # two counts below 2**15 are one sum


@triton.jit
def resolve_single_row(
    batch,
    slots,
    table,
    stamps,
    plan,
    out_ptr,
    MAX_SLOT: tl.constexpr,
    ROW_FITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_ITEMS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tuple[object, ...]]:
    """Finds the sequence's rows; resolves a single one, none at all, and leaves others (`LEFT`).

    Returns:
        What `miss_count` and `item_count` become, and `rows` for the general phases.
    """
    items, row_seq_ptr, seq, num_rows = batch
    items_ptr, k, row_stride, item_stride = items
    if ROW_FITS:
        # not searched for but guessed: the row of the sequence's own number, if there is one
        guessed = (items_ptr, tl.where(seq < num_rows, k, 0), row_stride, item_stride)
        is_own = tl.load(row_seq_ptr + seq, mask=seq < num_rows, other=-1) == seq
        found = _look_up_row(guessed, seq, is_own, slots, table, BLOCK_ITEMS, BLOCK_SLOTS)
    first_row, last_row = _find_rows(row_seq_ptr, seq, num_rows, BLOCK_ROWS)
    num_misses, num_items = tl.where(first_row <= last_row, LEFT, 0), 0
    if ROW_FITS and first_row == last_row:
        if first_row != seq:
            found = _look_up_row(
                items, first_row, first_row >= 0, slots, table, BLOCK_ITEMS, BLOCK_SLOTS
            )
        out_row = (out_ptr + tl.cast(first_row, tl.int64) * k, k)
        num_misses, num_items = _resolve_row(
            found, slots, table, stamps, plan, out_row, MAX_SLOT, BLOCK_ITEMS, BLOCK_SLOTS
        )
    return num_misses, num_items, (items, row_seq_ptr, seq, first_row, last_row)


@triton.jit
def _find_rows(row_seq_ptr, seq, num_rows, BLOCK_ROWS: tl.constexpr):
    """First and last row of the sequence; others may lie between. No row: first > last."""
    first = tl.full([BLOCK_ROWS], 2147483647, tl.int32)
    last = tl.full([BLOCK_ROWS], -1, tl.int32)
    for start in range(0, num_rows, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        is_own = tl.load(row_seq_ptr + row, mask=row < num_rows, other=-1) == seq
        first = tl.minimum(first, tl.where(is_own, row, 2147483647))
        last = tl.maximum(last, tl.where(is_own, row, -1))
    return tl.min(first), tl.max(last)


@triton.jit
def _look_up_row(
    items, row, is_own, slots, table, BLOCK_ITEMS: tl.constexpr, BLOCK_SLOTS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Items of a row, those left of them, their entries in the table; stamps of the first slots.

    A row that is not the sequence's own is loaded in vain, and nothing but the row.
    """
    column, slot = tl.arange(0, BLOCK_ITEMS), tl.arange(0, BLOCK_SLOTS)
    item = load_items(items, row, column)
    left = load_items(items, row, tl.maximum(column - 1, 0))
    num_slots = tl.where(is_own, slots[3], 0)
    held = tl.load(slots[1] + slot, mask=slot < num_slots, other=_NO_SLOT)
    item = tl.where(is_own, item, -1)
    entry = tl.load(table[0] + table[1] + item, mask=item >= 0, other=0)
    return item, left, entry, held


@triton.jit
def _resolve_row(
    looked_up,
    slots,
    table,
    stamps,
    plan,
    out_row,
    MAX_SLOT: tl.constexpr,
    BLOCK_ITEMS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Resolves what was looked up; returns what `miss_count` and `item_count` become.

    Or `LEFT`, with the state as it was: where items with misses among them do not ascend, where
    victims have many different stamps, and where there are more than `BLOCK_SLOTS` slots and a miss
    or a repeat. `looked_up` is of `_look_up_row`, `out_row` where the row's slots go, and k.
    """
    item, left, entry, held = looked_up
    newest = tl.max(held)
    is_miss = entry < 0
    is_after = (tl.arange(0, BLOCK_ITEMS) == 0) | ((left >= 0) & (left < item))
    breaks_order = (item >= 0) & ~is_after
    counts = _sum_pair((item >= 0), is_miss | breaks_order)
    stamp, slot_count = stamps[0], slots[3]
    may_be_served = (stamp >= 0) & (slot_count - 1 <= MAX_SLOT)
    if counts < _HIGH:
        # stamps only grow as a rule: then no hit's own needs to be looked at
        look = (newest > stamp) | (slot_count > BLOCK_SLOTS)
        _serve_hits(item, entry, slots, stamp, look, may_be_served, out_row, BLOCK_ITEMS)
        num_misses = tl.where(may_be_served, 0, -1)
        num_items = tl.where(may_be_served, counts, 0)
    else:
        counts = _sum_pair(is_miss, breaks_order)
        num_misses, num_items = counts % _HIGH, 0
        if ((counts < _HIGH) | (num_misses == 0)) & (slot_count <= BLOCK_SLOTS):
            num_misses, num_items = _serve_misses(
                item,
                entry,
                held,
                num_misses,
                slots,
                table,
                stamps,
                plan,
                out_row,
                BLOCK_ITEMS,
                BLOCK_SLOTS,
            )
        else:
            num_misses = LEFT
    return num_misses, num_items


@triton.jit
def _sum_pair(low, high):
    """Numbers of true elements in one word, the second `_HIGH` fold."""
    return tl.sum(low.to(tl.int32) + high.to(tl.int32) * _HIGH)


@triton.jit
def _serve_hits(item, entry, slots, stamp, look, may_be_served, out_row, BLOCK_ITEMS: tl.constexpr):
    """Moves the stamps of hits forward; `look` = some may be later than `stamp`."""
    _, slot_stamp_ptr, slot_base, _ = slots
    slot, item = entry.to(tl.int32), tl.where(may_be_served, item, -1)
    looked_at = tl.where(look, item, -1)
    before = tl.load(slot_stamp_ptr + slot, mask=looked_at >= 0, other=-1)
    tl.store(slot_stamp_ptr + slot, tl.maximum(before, stamp), mask=item >= 0)
    _write_row(out_row, tl.where(item >= 0, slot_base + slot, -1), BLOCK_ITEMS)


@triton.jit
def _serve_misses(
    item,
    entry,
    held,
    num_misses,
    slots,
    table,
    stamps,
    plan,
    out_row,
    BLOCK_ITEMS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
):
    slot_item_ptr, slot_stamp_ptr, slot_base, _ = slots
    miss_item_ptr, miss_dst_ptr, cap = plan
    stamp, slot = stamps[0], tl.arange(0, BLOCK_SLOTS)
    is_miss = entry < 0
    rank = running_count(is_miss)[0] - 1
    tl.store(miss_item_ptr + rank, item, mask=is_miss & (rank < cap))
    is_wanted = _mark_hits(item, entry, slots, BLOCK_SLOTS)
    is_free = (held >= -1) & (held < stamps[1]) & ~is_wanted
    counts = _sum_pair(is_free, is_wanted)
    is_served = (stamp >= 0) & (num_misses <= counts % _HIGH) & (num_misses <= cap)
    wanted = tl.where(is_served, num_misses, 0)
    victim_rank, num_ranked = rank_oldest(tl.where(is_free, held, _LAST), wanted)
    is_done = is_served & (num_ranked == wanted)
    victim_rank = tl.where(is_done, victim_rank, -1)
    is_victim = victim_rank >= 0

    after = tl.where(is_wanted, tl.maximum(held, stamp), stamp)
    after = tl.where(is_done, after, held)
    tl.store(slot_stamp_ptr + slot, after, mask=is_wanted | is_victim)
    evicted = tl.load(slot_item_ptr + slot, mask=is_victim, other=-1)
    tl.store(miss_dst_ptr + victim_rank, (slot_base + slot).to(tl.int32), mask=is_victim)
    tl.debug_barrier()  # destinations are known; and stamps are whole again
    item = tl.where(is_done, item, -1)
    dst = tl.load(miss_dst_ptr + rank, mask=is_miss & (item >= 0), other=-1)
    _give_slots(item, dst, evicted, slots, table)
    found = tl.where(is_miss, dst, (slot_base + entry).to(tl.int32))
    _write_row(out_row, tl.where(item >= 0, found, -1), BLOCK_ITEMS)
    num_items = tl.where(is_done, num_misses + counts // _HIGH, 0)
    return tl.where(is_done, num_misses, tl.where(is_served, LEFT, -1)), num_items


@triton.jit
def _mark_hits(item, entry, slots, BLOCK_SLOTS: tl.constexpr):
    """Which slots hold wanted items; their stamps become `_MARK`."""
    _, slot_stamp_ptr, _, slot_count = slots
    mark = tl.full(item.shape, _MARK, tl.int32)
    tl.debug_barrier()  # all threads have loaded the stamps
    tl.store(slot_stamp_ptr + entry.to(tl.int32), mark, mask=(item >= 0) & (entry >= 0))
    tl.debug_barrier()
    slot = tl.arange(0, BLOCK_SLOTS)
    return tl.load(slot_stamp_ptr + slot, mask=slot < slot_count, other=0) == _MARK


@triton.jit
def _give_slots(item, dst, evicted, slots, table):
    """Items that have a destination take its slot, and those evicted lose theirs."""
    slot_item_ptr, _, slot_base, _ = slots
    table_ptr = table[0] + table[1]
    none = tl.full(evicted.shape, -1, table_ptr.dtype.element_ty)
    tl.store(table_ptr + evicted, none, mask=evicted >= 0)
    slot = dst - slot_base
    tl.store(table_ptr + item, slot.to(table_ptr.dtype.element_ty), mask=dst >= 0)
    tl.store(slot_item_ptr + slot, item, mask=dst >= 0)


@triton.jit
def _write_row(out_row, slot, BLOCK_ITEMS: tl.constexpr):
    out_ptr, k = out_row
    column = tl.arange(0, BLOCK_ITEMS)
    tl.store(out_ptr + column, slot.to(tl.int32), mask=column < k)
