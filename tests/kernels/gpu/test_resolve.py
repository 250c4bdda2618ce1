import pytest
import torch

from accuracy import assert_bits_equal
from tests.kernels.gpu.slot_states import (
    WILD,
    assert_resolves_as_the_reference,
    assert_same_slots,
    request,
    run_ref,
    run_triton,
    slots_of,
)

TABLES = pytest.mark.parametrize("dtype", [torch.int16, torch.int32], ids=["int16", "int32"])
# ties only, as many stamps as are worth a pass each, and more: then the oldest are searched for
STAMPS = pytest.mark.parametrize("num_stamps", [1, 4, 1000])
LATE = 9000  # later than every stamp of a state

ROWS = {
    "all_hits": ([list(range(0, 28, 2))], [0]),
    "all_misses": ([list(range(1, 29, 2))], [0]),
    "hits_among_misses": ([list(range(28))], [1]),
    "one_hit": ([[6]], [2]),
    "one_miss": ([[7]], [2]),
    "no_item": ([[-1, -1, -1]], [1]),
    "repeats_in_a_row": ([[5, 5, 2, -1, 2, 5, 9, 2]], [0]),
    "unordered_row": ([[9, 2, 7, 0, -1, 1, 30, 3]], [0]),
    "drafts_share_items": ([[1, 2, 5, 9], [-1, 5, 9, 1], [3, 2, 5, 11]], [1, 1, 1]),
    "drafts_follow_each_other": ([[1, 2, 3], [5, 6, 7], [9, 10, 11]], [0, 0, 0]),
    "padding_after_and_between": ([[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]], [-1, 2, -1, 0, -1]),
    "only_padding": ([[1, 2], [3, 4]], [-1, -1]),
    "interleaved": ([[1, 3], [2, 5], [4, 3], [0, 9], [3, 1], [7, 5]], [2, 0, 2, 1, 0, 2]),
}


@STAMPS
@TABLES
@pytest.mark.parametrize("name", ROWS)
def test_every_item_gets_the_slot_of_the_reference(
    name: str, dtype: torch.dtype, num_stamps: int, device: str
) -> None:
    torch.manual_seed(0)
    slots = slots_of([40, 35, 33], dtype=dtype, num_stamps=num_stamps)

    done = assert_resolves_as_the_reference(slots, request(*ROWS[name], LATE, LATE), device)

    assert done.plan.miss_count.min() >= 0


@TABLES
# entries are read by sixteen where their number allows it: with 9 + 0, 5 + 4 and 2 + 7
@pytest.mark.parametrize(("before", "after"), [(0, 0), (9, 0), (5, 4), (2, 7)])
def test_a_table_is_read_from_its_first_entry_to_its_last(
    before: int, after: int, dtype: torch.dtype, device: str
) -> None:
    torch.manual_seed(0)
    slots = slots_of([20, 20], num_items=64, dtype=dtype, before=before, after=after)
    wanted = request([[63, 45, 62, 63, 41], [63, 61, 1, 43, 63]], [0, 1], LATE, LATE)

    done = assert_resolves_as_the_reference(slots, wanted, device)

    assert done.plan.miss_count.tolist() == [4, 4]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_nothing_wanted_gives_counts_of_zero(shape: tuple[int, int], device: str) -> None:
    wanted = request(torch.zeros(shape), [0] * shape[0], LATE, LATE)

    done = assert_resolves_as_the_reference(slots_of([9, 8]), wanted, device)

    assert done.plan.miss_count.tolist() == done.plan.item_count.tolist() == [0, 0]


@STAMPS
@pytest.mark.parametrize(("k", "count", "cap"), [(60, 700, 60), (2100, 4500, 5000)])
def test_rows_and_slots_longer_than_a_tile_are_resolved(
    k: int, count: int, cap: int, num_stamps: int, device: str
) -> None:
    torch.manual_seed(0)
    slots = slots_of([count], num_items=3 * count, cap=cap, num_stamps=num_stamps)
    items = torch.randperm(3 * count)[:k]

    for row in (items, items.sort().values):
        assert_resolves_as_the_reference(slots, request(row[None], [0], LATE, LATE), device)


def test_rows_are_found_among_more_than_a_tile_of_others(device: str) -> None:
    torch.manual_seed(0)
    row_seq = torch.full((600,), -1)
    row_seq[[3, 255, 256, 511, 599]] = torch.tensor([1, 0, 1, 1, 0])
    wanted = request(torch.randint(-1, 60, (600, 2)), row_seq.tolist(), LATE, LATE)

    assert_resolves_as_the_reference(slots_of([9, 8]), wanted, device)


def test_a_column_slice_of_the_items_is_read_by_its_strides(device: str) -> None:
    torch.manual_seed(0)
    wide, row_seq = torch.randint(-1, 60, (2, 12)).int(), [1, 0]
    expected = slots_of([30, 30])
    found = expected.to(device)
    expected_slots = run_ref(expected, request(wide[:, 1::3], row_seq, LATE, LATE))

    found_slots = run_triton(found, request(wide.to(device)[:, 1::3], row_seq, LATE, LATE))

    assert_bits_equal(found_slots.cpu(), expected_slots)
    assert_same_slots(found, expected)


@STAMPS
@pytest.mark.parametrize("held", [0.0, 0.5, 1.0])
def test_as_many_misses_as_slots_and_as_the_plan_holds_take_every_slot(
    held: float, num_stamps: int, device: str
) -> None:
    torch.manual_seed(0)
    slots = slots_of([25, 9], cap=25, held=held, num_stamps=num_stamps)
    wanted = request([list(range(101, 151, 2))], [0], LATE, LATE)

    done = assert_resolves_as_the_reference(slots, wanted, device)

    assert done.plan.miss_count.tolist() == [25, 0]
    assert done.state.slot_stamp[done.own_slots(0)].tolist() == [LATE] * 25
    assert (done.plan.miss_item[1] == WILD).all()


@STAMPS
@pytest.mark.parametrize("protect_since", [0, 3, 12, 40])
def test_free_and_unprotected_slots_are_taken_and_protected_ones_stay(
    protect_since: int, num_stamps: int, device: str
) -> None:
    torch.manual_seed(0)
    slots = slots_of([40], held=0.8, num_stamps=num_stamps)
    may_go = slots.state.slot_stamp[slots.own_slots(0)] < protect_since
    items = 2 * torch.arange(int(may_go.sum())) + 101

    # a stamp in the past, as of rows that stream through
    wanted = request(items[None], [0], 2, protect_since)
    done = assert_resolves_as_the_reference(slots, wanted, device)

    assert torch.equal(done.state.slot_item[done.own_slots(0)] > 100, may_go)


def test_a_hit_only_moves_its_stamp_forward(device: str) -> None:
    torch.manual_seed(0)
    slots = slots_of([30], num_stamps=30)
    before = slots.state.slot_stamp[slots.own_slots(0)]
    wanted = request([list(range(0, 60, 2))], [0], 17, 17)

    done = assert_resolves_as_the_reference(slots, wanted, device)

    assert torch.equal(done.state.slot_stamp[done.own_slots(0)], before.clamp(min=17))


@TABLES
@pytest.mark.parametrize(
    "row", [[0, 1, 2, 3, 4, 5], [5, 2, 3, 0, 5, 1, 4]], ids=["ascending", "unordered"]
)
@pytest.mark.parametrize("cap", [2, 64])
def test_a_sequence_without_room_keeps_its_state_and_others_are_served(
    cap: int, row: list[int], dtype: torch.dtype, device: str
) -> None:
    torch.manual_seed(0)
    # 6 of 6 slots hold items and three are hits: no room for three misses where 2 are protected
    slots = slots_of([20, 6, 30], cap=cap, dtype=dtype, num_stamps=6)
    other = [6, 7, 8, 9] + [-1] * (len(row) - 4)
    wanted = request([other, row, row[::-1], other], [0, 1, 1, 2], LATE, 2 if cap == 64 else LATE)

    done = assert_resolves_as_the_reference(slots, wanted, device)

    assert done.plan.miss_count.tolist() == [2, -1, 2]
    assert done.plan.item_count.tolist() == [4, 0, 4]


def test_a_plan_without_room_refuses_all_misses_and_serves_hits(device: str) -> None:
    wanted = request([[0, 2, 4], [1, 2, 4]], [0, 1], LATE, LATE)

    done = assert_resolves_as_the_reference(slots_of([9, 9], cap=0), wanted, device)

    assert done.plan.miss_count.tolist() == [0, -1]


def test_a_refused_sequence_writes_to_no_other_row_of_the_plan(device: str) -> None:
    slots = slots_of([9, 9, 9], cap=2).to(device)

    run_triton(slots, request([[1, 3, 5, 7], [7, 3, 1, 5]], [1, 1], LATE, LATE))

    assert slots.plan.miss_count.tolist() == [0, -1, 0]
    for entries in (slots.plan.miss_item, slots.plan.miss_dst):
        assert (entries[[0, 2]] == WILD).all()


def test_more_slots_than_the_table_can_number_are_refused(device: str) -> None:
    torch.manual_seed(0)
    wanted = request([[5, 1, 9], [1, 3, 5]], [0, 1], LATE, LATE)

    narrow = slots_of([32769, 32768], held=0.0)
    done = assert_resolves_as_the_reference(narrow, wanted, device)
    assert done.plan.miss_count.tolist() == [-1, 3]

    wide = slots_of([32769, 32768], held=0.0, dtype=torch.int32)
    done = assert_resolves_as_the_reference(wide, wanted, device)
    assert done.plan.miss_count.tolist() == [3, 3]


def test_a_negative_stamp_is_refused_for_every_sequence(device: str) -> None:
    wanted = request([[0, 1], [3, 3], [4, 5]], [0, -1, 2], -1, 7)

    done = assert_resolves_as_the_reference(slots_of([9, 9, 9]), wanted, device)

    assert done.plan.miss_count.tolist() == [-1, 0, -1]
