"""Give every wanted item a slot: exact LRU over one range of slots per sequence.

One primitive serves the hot buffer (items are token positions) and the block window (items are
block ids). -1 = no item, no slot, free.
"""

from dataclasses import dataclass

import torch

from hisparse_kernels.shapes import Shapes, check_at_least


@dataclass(frozen=True)
class SlotState:
    """What the slots of all sequences hold; ops change the tensors in place.

    Attributes:
        slot_item: [num_slots] int32, item in each slot; -1 = free.
        slot_stamp: [num_slots] int32, when the slot was last used; -1 = free.
        slot_table: [entries] int16 or int32, slot of each item, relative to its sequence's first
            slot; -1 = not resident.
    """

    slot_item: torch.Tensor
    slot_stamp: torch.Tensor
    slot_table: torch.Tensor


@dataclass(frozen=True)
class SlotRanges:
    """Where each sequence's state lies.

    Attributes:
        slot_base: [num_seqs] int64, first slot.
        slot_count: [num_seqs] int64, slots of the sequence.
        table_base: [num_seqs] int64, entry of item 0 in the slot table.
    """

    slot_base: torch.Tensor
    slot_count: torch.Tensor
    table_base: torch.Tensor


@dataclass(frozen=True)
class MissPlan:
    """What to copy into which slot; recorded by `resolve`, replayed by every layer that shares it.

    Attributes:
        miss_item: [num_seqs, cap] int32, missed items, ascending.
        miss_dst: [num_seqs, cap] int32, absolute slot of each.
        miss_count: [num_seqs] int32; entries from here on mean nothing; -1 = refused, which only
            a GPU writes: nothing is copied.
        item_count: [num_seqs] int32, distinct items that the sequence asked for: hits and misses.
    """

    miss_item: torch.Tensor
    miss_dst: torch.Tensor
    miss_count: torch.Tensor
    item_count: torch.Tensor


def resolve(
    items: torch.Tensor,
    row_seq: torch.Tensor,
    state: SlotState,
    ranges: SlotRanges,
    stamps: torch.Tensor,
    plan: MissPlan,
    out: torch.Tensor,
) -> torch.Tensor:
    """Slots of all items; those not resident take the slots used longest ago.

    Per sequence, on the union of its items: a hit's stamp becomes max(its stamp, `stamp`). The i-th
    miss in ascending order takes the i-th victim: slots that hold no item of the union and whose
    stamp is below `protect_since`, by (stamp, slot) ascending, so free ones first.

    Args:
        items: [rows, k] int32, in any order, repeats allowed; -1 = none.
        row_seq: [rows] int32, sequence of each row; -1 = padding row, which touches no state.
        state: slots of all sequences, changed in place.
        ranges: each sequence's part of `state`.
        stamps: [2] int32, `stamp` and `protect_since`: the call's time, from 0 to 2**31 - 2, and
            the first stamp whose slots are not evicted. A tensor, so that a captured graph sees new
            ones.
        plan: overwritten; the counts of a sequence without a row become 0.
        out: [rows, k] int32, overwritten: absolute slots, -1 where there is no item.

    Returns:
        `out`.

    Raises:
        ValueError: a sequence has too few victims, more misses than `plan` holds, or more slots
            than the table's dtype can number, or `stamp` is negative; nothing was changed. On a GPU
            nothing is raised: such a sequence (with a negative `stamp`, each that has a row) keeps
            its state, its rows of `out` are -1, its `miss_count` is -1 and its `item_count` 0; the
            other sequences are served.
    """
    shapes = _check_state(state, ranges)
    shapes.check("items", items, "rows k", torch.int32)
    shapes.check_packed("row_seq", row_seq, "rows", torch.int32)
    shapes.check_packed("out", out, "rows k", torch.int32)
    shapes.check_packed("stamps", stamps, "2", torch.int32)
    shapes.check_packed("miss_item", plan.miss_item, "num_seqs cap", torch.int32)
    shapes.check_packed("miss_dst", plan.miss_dst, "num_seqs cap", torch.int32)
    shapes.check_packed("miss_count", plan.miss_count, "num_seqs", torch.int32)
    shapes.check_packed("item_count", plan.item_count, "num_seqs", torch.int32)
    if items.is_cuda:
        from hisparse_kernels.gpu.resolve import resolve_triton

        return resolve_triton(items, row_seq, state, ranges, stamps, plan, out)
    return resolve_ref(items, row_seq, state, ranges, stamps, plan, out)


def resolve_ref(
    items: torch.Tensor,
    row_seq: torch.Tensor,
    state: SlotState,
    ranges: SlotRanges,
    stamps: torch.Tensor,
    plan: MissPlan,
    out: torch.Tensor,
) -> torch.Tensor:
    stamp, protect_since = stamps.tolist()
    check_at_least("stamp", stamp, 0)
    claims = []
    for seq in row_seq[row_seq >= 0].unique().tolist():
        wanted = items[row_seq == seq].flatten()
        wanted = wanted[wanted >= 0].unique().long()
        claim = _claim(seq, wanted, state, ranges, protect_since)
        check_at_least("cap of the miss plan", plan.miss_item.shape[1], len(claim.missed))
        claims.append(claim)
    plan.miss_count.zero_()
    plan.item_count.zero_()
    out.fill_(-1)
    for claim in claims:
        _apply(claim, state, stamp, plan)
        rows = (row_seq == claim.seq).nonzero()[:, 0]
        entry = claim.table_base + items[rows].clamp(min=0).long()
        slots = state.slot_table[entry].int() + claim.slot_base
        out[rows] = slots.masked_fill_(items[rows] < 0, -1)
    return out


def release_items(state: SlotState, ranges: SlotRanges, seq: int, first_item: int) -> None:
    """Frees every slot of a sequence that holds `first_item` or a later one.

    Args:
        state: slots of all sequences, changed in place.
        ranges: each sequence's part of `state`.
        seq: row of the sequence in `ranges`.
        first_item: the new end; 0 = free all.
    """
    _check_state(state, ranges)
    check_at_least("first_item", first_item, 0)
    check_at_least("seq", seq, 0)
    check_at_least("number of sequences", len(ranges.slot_base), seq + 1)
    if state.slot_item.is_cuda:
        from hisparse_kernels.gpu.resolve import release_items_triton

        release_items_triton(state, ranges, seq, first_item)
    else:
        release_items_ref(state, ranges, seq, first_item)


def release_items_ref(state: SlotState, ranges: SlotRanges, seq: int, first_item: int) -> None:
    base, count = int(ranges.slot_base[seq]), int(ranges.slot_count[seq])
    slot_item = state.slot_item[base : base + count]
    freed = slot_item >= first_item
    state.slot_table[int(ranges.table_base[seq]) + slot_item[freed].long()] = -1
    state.slot_stamp[base : base + count].masked_fill_(freed, -1)
    slot_item.masked_fill_(freed, -1)


@dataclass(frozen=True)
class _Claim:
    """What one sequence is about to change; slots are relative to `slot_base`."""

    seq: int
    slot_base: int
    slot_end: int
    table_base: int
    hit_slots: torch.Tensor
    missed: torch.Tensor
    victims: torch.Tensor


def _claim(
    seq: int, wanted: torch.Tensor, state: SlotState, ranges: SlotRanges, protect_since: int
) -> _Claim:
    base, count = int(ranges.slot_base[seq]), int(ranges.slot_count[seq])
    table_base = int(ranges.table_base[seq])
    most = torch.iinfo(state.slot_table.dtype).max + 1
    if count > most:
        raise ValueError(f"sequence {seq} has {count} slots, its table can number {most}")
    slots = state.slot_table[table_base + wanted].long()
    hit_slots, missed = slots[slots >= 0], wanted[slots < 0]
    stamps = state.slot_stamp[base : base + count]
    kept = stamps >= protect_since
    kept[hit_slots] = True
    num_free = count - int(kept.sum())
    if num_free < len(missed):
        raise ValueError(
            f"sequence {seq}: {len(missed)} misses need slots, {num_free} of {count} may be evicted"
        )
    last = torch.iinfo(torch.int32).max
    victims = torch.argsort(stamps.masked_fill(kept, last), stable=True)[: len(missed)]
    return _Claim(seq, base, base + count, table_base, hit_slots, missed, victims)


def _apply(claim: _Claim, state: SlotState, stamp: int, plan: MissPlan) -> None:
    slot_item = state.slot_item[claim.slot_base : claim.slot_end]
    slot_stamp = state.slot_stamp[claim.slot_base : claim.slot_end]
    table, missed, victims = state.slot_table, claim.missed, claim.victims
    slot_stamp[claim.hit_slots] = slot_stamp[claim.hit_slots].clamp(min=stamp)
    old = slot_item[victims].long()
    table[claim.table_base + old[old >= 0]] = -1
    table[claim.table_base + missed] = victims.to(table.dtype)
    slot_item[victims] = missed.int()
    slot_stamp[victims] = stamp
    plan.miss_item[claim.seq, : len(missed)] = missed.int()
    plan.miss_dst[claim.seq, : len(missed)] = (victims + claim.slot_base).int()
    plan.miss_count[claim.seq] = len(missed)
    plan.item_count[claim.seq] = len(missed) + len(claim.hit_slots)


def _check_state(state: SlotState, ranges: SlotRanges) -> Shapes:
    shapes = Shapes()
    shapes.check_packed("slot_item", state.slot_item, "num_slots", torch.int32)
    shapes.check_packed("slot_stamp", state.slot_stamp, "num_slots", torch.int32)
    shapes.check_packed("slot_table", state.slot_table, "entries", torch.int16, torch.int32)
    shapes.check_packed("slot_base", ranges.slot_base, "num_seqs", torch.int64)
    shapes.check_packed("slot_count", ranges.slot_count, "num_seqs", torch.int64)
    shapes.check_packed("table_base", ranges.table_base, "num_seqs", torch.int64)
    return shapes
