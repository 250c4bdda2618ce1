"""Slot states of some sequences in one arena, and both backends' resolve from the same state."""

from dataclasses import dataclass

import torch

from accuracy import assert_bits_equal
from hisparse_kernels.gpu.resolve import resolve_triton
from hisparse_kernels.resolve import MissPlan, SlotRanges, SlotState, resolve_ref

WILD = 2**30  # what plan and slots hold before they are written
FOREIGN = -2  # what entries and stamps of nobody hold: a kernel's marks look like it


@dataclass(frozen=True)
class Slots:
    state: SlotState
    ranges: SlotRanges
    plan: MissPlan

    def to(self, device: str) -> "Slots":
        """A copy."""
        parts = [vars(part).values() for part in (self.state, self.ranges, self.plan)]
        state, ranges, plan = [[t.to(device, copy=True) for t in part] for part in parts]
        return Slots(SlotState(*state), SlotRanges(*ranges), MissPlan(*plan))

    def changing(self) -> list[torch.Tensor]:
        return [*vars(self.state).values(), *vars(self.plan).values()]

    def own_slots(self, seq: int) -> slice:
        base = int(self.ranges.slot_base[seq])
        return slice(base, base + int(self.ranges.slot_count[seq]))


@dataclass(frozen=True)
class Request:
    """Arguments of one resolve, on the CPU."""

    items: torch.Tensor  # [rows, k] int32
    row_seq: torch.Tensor  # [rows] int32
    stamps: torch.Tensor  # [2] int32

    def only(self, seq: int) -> "Request":
        return Request(self.items, self.row_seq.masked_fill(self.row_seq != seq, -1), self.stamps)

    def without(self, seqs: list[int]) -> "Request":
        gone = torch.isin(self.row_seq, torch.tensor(seqs, dtype=torch.int32))
        return Request(self.items, self.row_seq.masked_fill(gone, -1), self.stamps)


def request(items: list[list[int]] | torch.Tensor, row_seq: list[int], *stamps: int) -> Request:
    return Request(
        torch.as_tensor(items).int(),
        torch.tensor(row_seq, dtype=torch.int32),
        torch.tensor(stamps, dtype=torch.int32),
    )


def slots_of(
    counts: list[int],
    *,
    num_items: int = 300,
    cap: int = 64,
    dtype: torch.dtype = torch.int16,
    held: float = 1.0,
    num_stamps: int = 5,
    before: int = 5,
    after: int | None = None,
) -> Slots:
    """Sequences that hold the items 0, 2, 4 ... in shuffled slots, with stamps below `num_stamps`.

    Args:
        counts: slots of each sequence; others' slots lie between.
        num_items: entries of each sequence in the table; others' entries lie between.
        cap: misses of a sequence that the plan holds.
        dtype: of the table.
        held: part of the slots that hold an item; the others are free.
        num_stamps: different stamps of a sequence.
        before: entries of others before the last sequence's, which come first.
        after: entries of others behind the first sequence's, which come last; None = as many as
            make the number of entries a multiple of 16.
    """
    count = torch.tensor(counts)
    base, table_base = (count + 3).cumsum(0) - count, torch.arange(len(counts)).flip(0)
    table_base = table_base * (num_items + 7) + before
    end, num_slots = int(table_base[0]) + num_items, int(base[-1]) + counts[-1] + 4
    item, stamp = torch.full((num_slots,), WILD).int(), torch.full((num_slots,), FOREIGN).int()
    table = torch.full((end + (-end % 16 if after is None else after),), FOREIGN).to(dtype)
    for first, size, entry in zip(base.tolist(), counts, table_base.tolist(), strict=True):
        slots, order = torch.randperm(size)[: int(held * size)], torch.randperm(size)
        item[first : first + size] = stamp[first : first + size] = -1
        item[first + slots] = 2 * torch.arange(len(slots)).int()
        stamp[first + slots] = (order[: len(slots)] % num_stamps).int()
        table[entry : entry + num_items] = -1
        table[entry + 2 * torch.arange(len(slots))] = slots.to(dtype)
    plan = [torch.full((len(counts), cap), WILD).int() for _ in range(2)]
    plan += [torch.full((len(counts),), WILD).int() for _ in range(2)]
    return Slots(
        SlotState(item, stamp, table), SlotRanges(base, count, table_base), MissPlan(*plan)
    )


def run_triton(slots: Slots, wanted: Request) -> torch.Tensor:
    """Slots that the kernel finds, on the device of the state."""
    device = slots.state.slot_item.device
    out = torch.full(wanted.items.shape, WILD, dtype=torch.int32, device=device)
    items, row_seq, stamps = [tensor.to(device) for tensor in vars(wanted).values()]
    found = resolve_triton(items, row_seq, slots.state, slots.ranges, stamps, slots.plan, out)
    assert found is out
    return out


def run_ref(slots: Slots, wanted: Request) -> torch.Tensor:
    """What a GPU must find: the reference without the sequences that it refuses."""
    try:
        return _run_ref(slots, wanted)
    except ValueError:
        present = wanted.row_seq[wanted.row_seq >= 0].unique().tolist()
        refused = [seq for seq in present if _refuses(slots.to("cpu"), wanted.only(seq))]
        if refused == present:
            wanted = Request(wanted.items, wanted.row_seq, wanted.stamps.clamp(min=0))
        found = _run_ref(slots, wanted.without(refused))
        slots.plan.miss_count[refused] = -1
        return found


def _run_ref(slots: Slots, wanted: Request) -> torch.Tensor:
    out = torch.full_like(wanted.items, WILD)
    return resolve_ref(
        wanted.items, wanted.row_seq, slots.state, slots.ranges, wanted.stamps, slots.plan, out
    )


def _refuses(slots: Slots, wanted: Request) -> bool:
    try:
        _run_ref(slots, wanted)
    except ValueError:
        return True
    return False


def assert_same_slots(found: Slots, expected: Slots) -> None:
    """State and plan, bit for bit; entries of a plan beyond the count mean nothing."""
    assert_same_plan(found, expected)
    for name, tensor in vars(expected.state).items():
        assert_bits_equal(getattr(found.state, name).cpu(), tensor)


def assert_same_plan(found: Slots, expected: Slots) -> None:
    counts = expected.plan.miss_count
    assert found.plan.miss_count.tolist() == counts.tolist()
    assert found.plan.item_count.tolist() == expected.plan.item_count.tolist()
    listed = torch.arange(expected.plan.miss_item.shape[1]) < counts[:, None]
    for name in ("miss_item", "miss_dst"):
        entries = getattr(found.plan, name).cpu()[listed]
        assert_bits_equal(entries, getattr(expected.plan, name)[listed])


def assert_resolves_as_the_reference(slots: Slots, wanted: Request, device: str) -> Slots:
    """From the same state on both; returns what the state is then, on the CPU."""
    expected, found = slots.to("cpu"), slots.to(device)
    expected_slots = run_ref(expected, wanted)

    assert_bits_equal(run_triton(found, wanted).cpu(), expected_slots)

    assert_same_slots(found, expected)
    return expected
