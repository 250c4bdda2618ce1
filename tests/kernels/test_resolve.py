from dataclasses import dataclass, field

import pytest
import torch

from hisparse_kernels.resolve import MissPlan, SlotRanges, SlotState, release_items, resolve


@dataclass
class PlainLru:
    """The exact LRU of one sequence, in dictionaries and sorted lists."""

    num_slots: int
    item_of: dict[int, int] = field(default_factory=dict)
    stamp_of: dict[int, int] = field(default_factory=dict)

    def resolve(
        self, items: list[int], stamp: int, protect_since: int
    ) -> tuple[dict[int, int], list[int], list[int]]:
        wanted = sorted({item for item in items if item >= 0})
        slot_of = {item: slot for slot, item in self.item_of.items()}
        misses = [item for item in wanted if item not in slot_of]
        free_first = sorted(range(self.num_slots), key=lambda s: (self.stamp_of.get(s, -1), s))
        victims = [
            slot
            for slot in free_first
            if self.stamp_of.get(slot, -1) < protect_since
            and self.item_of.get(slot, -1) not in wanted
        ]
        if len(victims) < len(misses):
            raise ValueError("too few victims")
        for item in wanted:
            if item in slot_of:
                slot = slot_of[item]
                self.stamp_of[slot] = max(self.stamp_of[slot], stamp)
        for item, slot in zip(misses, victims, strict=False):
            self.item_of[slot], self.stamp_of[slot] = item, stamp
        return {item: slot for slot, item in self.item_of.items()}, misses, victims[: len(misses)]

    def release(self, first_item: int) -> None:
        for slot in [s for s, item in self.item_of.items() if item >= first_item]:
            del self.item_of[slot], self.stamp_of[slot]


@dataclass
class World:
    """Some sequences' slots in one arena, with gaps of foreign slots between the ranges."""

    counts: list[int]
    table_tokens: int = 300
    cap: int = 64
    table_dtype: torch.dtype = torch.int16

    def __post_init__(self) -> None:
        counts = torch.tensor(self.counts)
        base = (counts + 3).cumsum(0) - counts
        num_slots, entries = int(base[-1] + counts[-1]) + 5, (self.table_tokens + 7) * len(counts)
        self.state = SlotState(
            torch.full((num_slots,), -1).int(),
            torch.full((num_slots,), -1).int(),
            torch.full((entries,), -1).to(self.table_dtype),
        )
        table_base = torch.arange(len(counts)).flip(0) * (self.table_tokens + 7)
        self.ranges = SlotRanges(base, counts, table_base)
        self.plan = MissPlan(
            torch.full((len(counts), self.cap), -7).int(),
            torch.full((len(counts), self.cap), -7).int(),
            torch.full((len(counts),), -7).int(),
            torch.full((len(counts),), -7).int(),
        )

    def resolve(
        self, items: list[list[int]], row_seq: list[int], stamp: int, protect_since: int
    ) -> torch.Tensor:
        out = torch.full((len(items), len(items[0])), -7).int()
        return resolve(
            torch.as_tensor(items).int(),
            torch.tensor(row_seq).int(),
            self.state,
            self.ranges,
            torch.tensor([stamp, protect_since]).int(),
            self.plan,
            out,
        )

    def misses(self, seq: int) -> tuple[list[int], list[int]]:
        count = int(self.plan.miss_count[seq])
        base = int(self.ranges.slot_base[seq])
        slots = (self.plan.miss_dst[seq, :count] - base).tolist()
        return self.plan.miss_item[seq, :count].tolist(), slots

    def snapshot(self) -> list[torch.Tensor]:
        return [t.clone() for t in (*vars(self.state).values(), *vars(self.plan).values())]

    def assert_is(self, models: list[PlainLru]) -> None:
        slot_item = torch.full_like(self.state.slot_item, -1)
        slot_stamp = torch.full_like(self.state.slot_stamp, -1)
        slot_table = torch.full_like(self.state.slot_table, -1)
        for seq, model in enumerate(models):
            base, table = int(self.ranges.slot_base[seq]), int(self.ranges.table_base[seq])
            for slot, item in model.item_of.items():
                slot_item[base + slot], slot_stamp[base + slot] = item, model.stamp_of[slot]
                slot_table[table + item] = slot
        assert torch.equal(self.state.slot_item, slot_item)
        assert torch.equal(self.state.slot_stamp, slot_stamp)
        assert torch.equal(self.state.slot_table, slot_table)


def wanted_items(items: torch.Tensor, row_seq: list[int]) -> dict[int, list[int]]:
    """All items of each sequence that has a row."""
    rows = list(zip(items.tolist(), row_seq, strict=True))
    seqs = sorted(set(row_seq) - {-1})
    return {seq: [item for row, of in rows if of == seq for item in row] for seq in seqs}


def play_step(world: World, models: list[PlainLru], step: int) -> list[PlainLru]:
    """One random call on the device state and on the models; returns the models after it."""
    row_seq = torch.randint(-1, 4, (int(torch.randint(1, 6, ())),)).tolist()
    items = torch.randint(-3, int(torch.randint(5, 300, ())), (len(row_seq), 9)).clamp(min=-1)
    call = items.tolist(), row_seq, 2 * step + int(torch.randint(0, 2, ())), 2 * step + 1
    trial = [PlainLru(m.num_slots, dict(m.item_of), dict(m.stamp_of)) for m in models]
    try:
        results = {
            s: trial[s].resolve(w, *call[2:]) for s, w in wanted_items(items, row_seq).items()
        }
    except ValueError:
        before = world.snapshot()
        with pytest.raises(ValueError, match="may be evicted"):
            world.resolve(*call)
        assert all(map(torch.equal, world.snapshot(), before))
        return models

    out = world.resolve(*call)

    wanted = wanted_items(items, row_seq)
    for seq in range(4):
        assert world.misses(seq) == results.get(seq, ({}, [], []))[1:]
        assert world.plan.item_count[seq] == len(set(wanted.get(seq, [])) - {-1})
    for row, seq in enumerate(row_seq):
        base, slots = int(world.ranges.slot_base[seq]), results[seq][0] if seq >= 0 else {}
        expected = [base + slots[i] if seq >= 0 and i >= 0 else -1 for i in items[row].tolist()]
        assert out[row].tolist() == expected
    return trial


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("table_dtype", [torch.int16, torch.int32])
def test_random_traces_equal_a_plain_lru_slot_for_slot(seed: int, table_dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    world = World([24, 1, 60, 33], table_dtype=table_dtype)
    models = [PlainLru(count) for count in world.counts]
    for step in range(1, 40):
        models = play_step(world, models, step)
        world.assert_is(models)
        if step % 7 == 0:
            seq, first = int(torch.randint(0, 4, ())), int(torch.randint(0, 200, ()))
            release_items(world.state, world.ranges, seq, first)
            models[seq].release(first)
            world.assert_is(models)


def test_misses_take_free_slots_then_the_oldest_in_ascending_order() -> None:
    world = World([4])
    world.resolve([[30, 10]], [0], stamp=3, protect_since=3)
    world.resolve([[20]], [0], stamp=5, protect_since=5)

    out = world.resolve([[9, 7, 10, 8]], [0], stamp=7, protect_since=7)

    # 10 is slot 0; 30 (slot 1, stamp 3), 20 (slot 2, stamp 5), slot 3 free
    base = int(world.ranges.slot_base[0])
    assert world.misses(0) == ([7, 8, 9], [3, 1, 2])
    assert (out - base).tolist() == [[2, 3, 0, 1]]


def test_all_hits_have_no_misses_and_only_move_stamps_forward() -> None:
    world = World([4])
    world.resolve([[1, 2, 3]], [0], stamp=5, protect_since=5)

    world.resolve([[3, 1, -1]], [0], stamp=4, protect_since=5)

    assert world.misses(0) == ([], [])
    assert world.state.slot_stamp.max() == 5
    assert (world.state.slot_stamp == 4).sum() == 0


def test_rows_of_one_sequence_share_slots() -> None:
    world = World([6])

    out = world.resolve([[1, 2, 3], [3, 2, 5], [-1, -1, -1]], [0, 0, 0], 3, 3)

    assert out[0, 1] == out[1, 1]
    assert out[0, 2] == out[1, 0]
    assert world.misses(0)[0] == [1, 2, 3, 5]
    assert out[2].tolist() == [-1, -1, -1]


def test_a_slot_used_in_this_step_is_never_a_victim() -> None:
    world = World([3])
    world.resolve([[1, 2]], [0], stamp=9, protect_since=9)

    with pytest.raises(ValueError, match="2 misses need slots, 1 of 3 may be evicted"):
        world.resolve([[5, 6]], [0], stamp=9, protect_since=9)


def test_a_streams_own_slots_recycle_but_the_steps_slots_stay() -> None:
    world = World([4])
    world.resolve([[100, 101]], [0], stamp=11, protect_since=11)

    for first in range(0, 40, 2):  # stamp 10 with protect_since 11: recycles itself
        world.resolve([[first, first + 1]], [0], stamp=10, protect_since=11)

    assert world.state.slot_table[world.ranges.table_base[0] + 100] == 0
    assert world.state.slot_table[world.ranges.table_base[0] + 101] == 1


def test_a_failing_sequence_leaves_every_sequence_unchanged() -> None:
    world = World([8, 2])
    world.resolve([[1, 2], [1, 2]], [0, 1], 1, 1)
    before = world.snapshot()

    with pytest.raises(ValueError, match="sequence 1: 3 misses need slots, 2 of 2"):
        world.resolve([[5, 6, 7], [5, 6, 7]], [0, 1], 3, 3)

    assert all(map(torch.equal, world.snapshot(), before))
    world.resolve([[5, 6, 7], [5, 2, 2]], [0, 1], 3, 3)
    assert world.misses(1) == ([5], [0])


def test_more_misses_than_the_plan_holds_are_refused_before_any_change() -> None:
    world = World([8], cap=2)
    before = world.snapshot()

    with pytest.raises(ValueError, match="miss plan is 2, needs at least 3"):
        world.resolve([[1, 2, 3]], [0], 1, 1)

    assert all(map(torch.equal, world.snapshot(), before))


def test_more_slots_than_the_table_can_number_are_refused() -> None:
    narrow, wide = World([32769]), World([32769], table_dtype=torch.int32)

    with pytest.raises(ValueError, match="has 32769 slots, its table can number 32768"):
        narrow.resolve([[1]], [0], 1, 1)
    wide.resolve([[1]], [0], 1, 1)


def test_padding_rows_and_absent_sequences_touch_no_state() -> None:
    world = World([4, 4])
    world.resolve([[1], [2]], [0, 1], 1, 1)
    state = [t.clone() for t in vars(world.state).values()]

    out = world.resolve([[3], [4]], [-1, -1], 3, 3)

    assert out.tolist() == [[-1], [-1]]
    assert world.plan.miss_count.tolist() == world.plan.item_count.tolist() == [0, 0]
    assert all(map(torch.equal, vars(world.state).values(), state))


def test_release_frees_later_items_only_and_frees_them_for_claims() -> None:
    world = World([4])
    world.resolve([[0, 1, 2, 3]], [0], 1, 1)

    release_items(world.state, world.ranges, 0, 2)

    assert world.state.slot_table[:4].tolist() == [0, 1, -1, -1]
    world.resolve([[2, 9]], [0], 1, 1)  # protect_since 1: only freed slots may be taken
    assert world.misses(0) == ([2, 9], [2, 3])
    release_items(world.state, world.ranges, 0, 0)
    assert int((world.state.slot_item >= 0).sum()) == 0
