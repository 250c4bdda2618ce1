"""Last phases of a resolve: the i-th miss takes the i-th oldest slot, and the stamps settle.

A marked slot has stamp -2 - s: its item is wanted, so it is no victim. What the tuples hold is
said in `misses.py`.
"""

import triton
import triton.language as tl

from hisparse_kernels.gpu.running_count import running_count

# few stamps share the oldest slots as a rule; beyond these rounds a search costs less
_MAX_ROUNDS = tl.constexpr(8)
_RANK_TILE = tl.constexpr(16)
_LAST = tl.constexpr(2147483647)  # later than every stamp that may be evicted


@triton.jit
def count_slots(
    slots, protect_since, BLOCK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Marked slots, slots that may be evicted, and the oldest stamp of the latter."""
    _, slot_stamp_ptr, _, slot_count = slots
    marked = tl.zeros([BLOCK], tl.int32)
    free = tl.zeros([BLOCK], tl.int32)
    oldest = tl.full([BLOCK], _LAST, tl.int32)
    for start in range(0, slot_count, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        stamp = tl.load(slot_stamp_ptr + slot, mask=slot < slot_count, other=_LAST)
        is_free = (stamp >= -1) & (stamp < protect_since)
        marked += (stamp < -1).to(tl.int32)
        free += is_free.to(tl.int32)
        oldest = tl.minimum(oldest, tl.where(is_free, stamp, _LAST))
    return tl.sum(marked), tl.sum(free), tl.min(oldest)


@triton.jit
def rank_oldest(age, wanted) -> tuple[tl.tensor, tl.tensor]:
    """Ranks in order of (age, place), of the first `wanted`; and how many have one.

    Args:
        age: [places] int32, of slots that may be evicted; the others have 2**31 - 1.
        wanted: how many of them, at most as many as there are.

    Returns:
        [places] int32 ranks, -1 = none; fewer than `wanted` have one if their ages are too many.
    """
    rank = tl.full(age.shape, -1, tl.int32)
    ranked, rounds = 0, 0
    oldest = tl.min(age)
    while (ranked < wanted) & (rounds < _MAX_ROUNDS):
        is_oldest = age == oldest
        count, num_oldest = running_count(is_oldest)
        own = ranked + count - 1
        rank = tl.where(is_oldest & (own < wanted), own, rank)
        ranked += num_oldest
        oldest = tl.min(tl.where(age > oldest, age, _LAST))
        rounds += 1
    return rank, tl.minimum(ranked, wanted)


@triton.jit
def claim_victims(
    slots,
    table,
    plan,
    num_misses,
    oldest,
    stamp,
    protect_since,
    BLOCK: tl.constexpr,
    BLOCK_MISSES: tl.constexpr,
) -> None:
    """Gives every listed miss its victim and the plan its destinations."""
    list_ptr = plan[1]  # holds slots of the sequence until they become destinations
    listed, rounds = 0, 0
    while (listed < num_misses) & (rounds < _MAX_ROUNDS):
        listed, oldest = _list_oldest(slots, list_ptr, listed, num_misses, oldest, BLOCK)
        rounds += 1
    unranked = num_misses - listed
    if unranked > 0:
        newest = _find_newest(slots, unranked, oldest, protect_since - 1, BLOCK)
        _list_between(slots, list_ptr + listed, unranked, oldest, newest, BLOCK)
    tl.debug_barrier()
    _claim_in_order(slots, table, plan, listed, stamp, BLOCK_MISSES)
    if unranked > 0:
        _claim_by_rank(
            slots, table, plan[0] + listed, list_ptr + listed, unranked, stamp, BLOCK_MISSES
        )


@triton.jit
def _list_oldest(slots, list_ptr, listed, num_misses, oldest, BLOCK: tl.constexpr):
    """Lists the slots of stamp `oldest`; returns how many are listed now and the next stamp."""
    _, slot_stamp_ptr, _, slot_count = slots
    next_oldest = tl.full([BLOCK], _LAST, tl.int32)
    for start in range(0, slot_count, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        stamp = tl.load(slot_stamp_ptr + slot, mask=slot < slot_count, other=_LAST)
        is_oldest = stamp == oldest
        count, num_oldest = running_count(is_oldest)
        rank = listed + count - 1
        tl.store(list_ptr + rank, slot, mask=is_oldest & (rank < num_misses))
        listed += num_oldest
        next_oldest = tl.minimum(next_oldest, tl.where(stamp > oldest, stamp, _LAST))
    return tl.minimum(listed, num_misses), tl.min(next_oldest)


@triton.jit
def _claim_in_order(slots, table, plan, num_victims, stamp, BLOCK: tl.constexpr):
    """The i-th miss takes the i-th listed slot."""
    slot_stamp_ptr, slot_base = slots[1], slots[2]
    miss_item_ptr, list_ptr, _ = plan
    for start in range(0, num_victims, BLOCK):
        rank = start + tl.arange(0, BLOCK)
        slot = tl.load(list_ptr + rank, mask=rank < num_victims, other=0)
        _give_slots(slot, rank, rank < num_victims, slots, table, miss_item_ptr)
        tl.store(slot_stamp_ptr + slot, tl.zeros_like(slot) + stamp, mask=rank < num_victims)
        tl.store(list_ptr + rank, (slot_base + slot).to(tl.int32), mask=rank < num_victims)


@triton.jit
def _give_slots(slot, rank, is_victim, slots, table, miss_item_ptr):
    """Victims forget their items and take the misses of rank `rank`."""
    slot_item_ptr, table_ptr = slots[0], table[0] + table[1]
    item = tl.load(miss_item_ptr + rank, mask=is_victim, other=0)
    evicted = tl.load(slot_item_ptr + slot, mask=is_victim, other=-1)
    none = tl.full(slot.shape, -1, table_ptr.dtype.element_ty)
    tl.store(table_ptr + evicted, none, mask=evicted >= 0)
    tl.store(table_ptr + item, slot.to(table_ptr.dtype.element_ty), mask=is_victim)
    tl.store(slot_item_ptr + slot, item, mask=is_victim)


@triton.jit
def _find_newest(slots, wanted, low, high, BLOCK: tl.constexpr):
    """Least stamp such that `wanted` slots have one from `low` to it; bisects `low` to `high`."""
    oldest = low
    while low < high:
        middle = low + (high - low) // 2
        if _count_between(slots, oldest, middle, BLOCK) < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@triton.jit
def _count_between(slots, oldest, newest, BLOCK: tl.constexpr):
    _, slot_stamp_ptr, _, slot_count = slots
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, slot_count, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        stamp = tl.load(slot_stamp_ptr + slot, mask=slot < slot_count, other=-2)
        count += ((stamp >= oldest) & (stamp <= newest)).to(tl.int32)
    return tl.sum(count)


@triton.jit
def _list_between(slots, list_ptr, wanted, oldest, newest, BLOCK: tl.constexpr):
    """Lists, in slot order, all slots from `oldest` to below `newest` and the first of `newest`."""
    _, slot_stamp_ptr, _, slot_count = slots
    ties = wanted - _count_between(slots, oldest, newest - 1, BLOCK)
    listed = 0
    for start in range(0, slot_count, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        stamp = tl.load(slot_stamp_ptr + slot, mask=slot < slot_count, other=-2)
        is_tie = stamp == newest
        is_old = (stamp >= oldest) & (stamp < newest)
        tie_count, num_ties = running_count(is_tie)
        is_victim = is_old | (is_tie & (tie_count <= ties))
        count, num_victims = running_count(is_victim)
        tl.store(list_ptr + listed + count - 1, slot, mask=is_victim)
        listed += num_victims
        ties -= num_ties


@triton.jit
def _claim_by_rank(slots, table, miss_item_ptr, list_ptr, num_victims, stamp, BLOCK: tl.constexpr):
    """Ranks the listed slots by (stamp, slot); each takes the miss of its rank."""
    slot_stamp_ptr, slot_base, table_ptr = slots[1], slots[2], table[0] + table[1]
    for start in range(0, num_victims, BLOCK):
        own = start + tl.arange(0, BLOCK)
        slot = tl.load(list_ptr + own, mask=own < num_victims, other=0)
        own_stamp = tl.load(slot_stamp_ptr + slot, mask=own < num_victims, other=_LAST)
        rank = tl.zeros([BLOCK], tl.int32)
        for first in range(0, num_victims, _RANK_TILE):
            other = first + tl.arange(0, _RANK_TILE)
            rival = tl.load(list_ptr + other, mask=other < num_victims, other=0)
            rival_stamp = tl.load(slot_stamp_ptr + rival, mask=other < num_victims, other=_LAST)
            # [_RANK_TILE, BLOCK]: a thread holds a column, so its sum needs no other thread
            is_older = rival_stamp[:, None] < own_stamp[None, :]
            is_tie = rival_stamp[:, None] == own_stamp[None, :]
            is_before = is_older | (is_tie & (other[:, None] < own[None, :]))
            rank += tl.sum(is_before.to(tl.int32), 0)
        _give_slots(slot, rank, own < num_victims, slots, table, miss_item_ptr)
    tl.debug_barrier()  # all ranks are known: stamps may change
    for start in range(0, num_victims, BLOCK):
        own = start + tl.arange(0, BLOCK)
        slot = tl.load(list_ptr + own, mask=own < num_victims, other=0)
        tl.store(slot_stamp_ptr + slot, tl.zeros_like(slot) + stamp, mask=own < num_victims)
    tl.debug_barrier()  # the list is no longer needed
    for start in range(0, num_victims, BLOCK):
        own = start + tl.arange(0, BLOCK)
        item = tl.load(miss_item_ptr + own, mask=own < num_victims, other=0)
        slot = slot_base + tl.load(table_ptr + item, mask=own < num_victims, other=-1)
        tl.store(list_ptr + own, slot.to(tl.int32), mask=own < num_victims)


@triton.jit
def settle_stamps(slots, stamp, served, BLOCK: tl.constexpr) -> None:
    """Takes the marks away; a served sequence's marked slots move forward to `stamp`."""
    _, slot_stamp_ptr, _, slot_count = slots
    for start in range(0, slot_count, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        found = tl.load(slot_stamp_ptr + slot, mask=slot < slot_count, other=0)
        before = -2 - found
        after = tl.where(served, tl.maximum(before, stamp), before)
        tl.store(slot_stamp_ptr + slot, after, mask=found < -1)
