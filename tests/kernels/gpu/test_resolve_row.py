"""A sequence with one row: every way that `resolve_row.py` takes, and those that it leaves."""

import pytest
import torch

from accuracy import assert_bits_equal
from tests.kernels.gpu.slot_states import (
    Request,
    Slots,
    assert_resolves_as_the_reference,
    assert_same_slots,
    request,
    run_ref,
    run_triton,
    slots_of,
)

TABLES = pytest.mark.parametrize("dtype", [torch.int16, torch.int32], ids=["int16", "int32"])
LATE = 9000  # later than every stamp of a state
TOPK, HOT_SLOTS, CONTEXT = 2048, 4096, 64 * 1024

# even items below twice the slots are resident
ROWS = {
    "hits_ascend": [0, 2, 6, 8, -1, -1],
    "hits_after_none": [-1, 2, 6, 8],
    "hits_around_none": [6, 8, -1, 2, 8],
    "hits_descend": [8, 6, 2, 0],
    "hits_repeat": [4, 4, 8, 2, 4, 2],
    "misses_ascend": [1, 3, 5, 90, 91, -1],
    "misses_after_none": [-1, 1, 3, 90, 91],
    "misses_around_none": [3, 90, -1, 1, 3, 91],
    "misses_repeat": [1, 1, 3, 90, 91, 91],
    "hits_descend_before_misses": [4, 2, 91, 92],
    "hits_among_misses": [0, 1, 2, 3, 4, 90, 91, 92],
}


@TABLES
@pytest.mark.parametrize(
    "stamps",
    [(LATE, LATE), (30, LATE), (2, 4), (0, 0)],
    ids=["a_step", "a_stream", "in_the_past", "first_of_all"],
)
@pytest.mark.parametrize("name", ROWS)
def test_a_row_gets_the_slots_of_the_reference(
    name: str, stamps: tuple[int, int], dtype: torch.dtype, device: str
) -> None:
    torch.manual_seed(0)
    wanted = request([ROWS[name]], [0], *stamps)

    for held in (1.0, 0.75):  # all slots hold an item, or some are free
        slots = slots_of([40], dtype=dtype, num_stamps=6, held=held)
        assert_resolves_as_the_reference(slots, wanted, device)


@pytest.mark.parametrize("name", ["hits_ascend", "hits_repeat", "misses_ascend", "misses_repeat"])
@pytest.mark.parametrize("row_seq", [[0, -1, -1], [-1, 0, -1], [-1, -1, 0], [0, 0, -1], [1, 2, 0]])
def test_a_row_is_found_wherever_it_lies(name: str, row_seq: list[int], device: str) -> None:
    torch.manual_seed(0)
    wanted = request([ROWS[name]] * 3, row_seq, LATE, LATE)

    done = assert_resolves_as_the_reference(slots_of([40, 9, 20]), wanted, device)

    assert done.plan.item_count[0] == len(set(ROWS[name]) - {-1})


@pytest.mark.parametrize("room", ["slots", "plan"])
@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("too_many", [0, 1])
def test_the_last_slot_is_given_and_one_miss_more_changes_nothing(
    too_many: int, order: str, room: str, device: str
) -> None:
    torch.manual_seed(0)
    # of 30 slots 20 have a stamp below 4, and four of these hold hits: 16 may be evicted
    slots = slots_of([30, 5], num_stamps=6, cap=64 if room == "slots" else 16)
    stamp_of = slots.state.slot_stamp[slots.own_slots(0)]
    item_of = slots.state.slot_item[slots.own_slots(0)]
    hits = torch.cat([item_of[stamp_of < 4][:4], item_of[stamp_of >= 4][:3]])
    items = torch.cat([hits, 2 * torch.arange(16 + too_many) + 101])
    items = items.sort(descending=order == "descending").values
    protected = 4 if room == "slots" else LATE
    before = [tensor.clone() for tensor in vars(slots.state).values()]

    done = assert_resolves_as_the_reference(
        slots, request(items[None], [0], LATE, protected), device
    )

    assert done.plan.miss_count.tolist() == [-1 if too_many else 16, 0]
    assert done.plan.item_count.tolist() == [0 if too_many else 23, 0]
    if too_many:
        assert all(map(torch.equal, vars(done.state).values(), before))


@pytest.mark.parametrize("items", [list(range(0, 60, 2)), [*range(0, 40, 2), *range(41, 61, 2)]])
@pytest.mark.parametrize("protect_since", [10, 17, 25])
def test_a_hit_of_a_later_stamp_keeps_it(items: list[int], protect_since: int, device: str) -> None:
    torch.manual_seed(0)
    slots = slots_of([40], num_stamps=40, held=0.9)
    item_of = slots.state.slot_item[slots.own_slots(0)]
    is_late = (slots.state.slot_stamp[slots.own_slots(0)] > 17) & torch.isin(
        item_of, torch.tensor(items)
    )
    before = slots.state.slot_stamp[slots.own_slots(0)][is_late]
    assert len(before) > 5

    wanted = request([items], [0], 17, protect_since)
    done = assert_resolves_as_the_reference(slots, wanted, device)

    assert torch.equal(done.state.slot_stamp[done.own_slots(0)][is_late], before)


# eight different stamps are ranked in registers, and no ninth
@pytest.mark.parametrize("num_stamps", [7, 8, 9, 40])
def test_victims_of_many_stamps_go_by_stamp_and_slot(num_stamps: int, device: str) -> None:
    torch.manual_seed(0)
    slots = slots_of([80], num_stamps=num_stamps, num_items=600, cap=80)
    items = torch.cat([torch.arange(0, 20, 2), torch.arange(201, 341, 2)])

    done = assert_resolves_as_the_reference(slots, request(items[None], [0], LATE, LATE), device)

    assert done.plan.miss_count.tolist() == [70]


@TABLES
@pytest.mark.parametrize("stamp", [3, LATE])
@pytest.mark.parametrize(
    "row", [[0, 4, 16_000], [16_000, 4, 0], [4, 4, 16_000], [4, 5, 17_000]], ids=str
)
def test_more_slots_than_a_block_are_resolved(
    row: list[int], stamp: int, dtype: torch.dtype, device: str
) -> None:
    torch.manual_seed(0)
    slots = slots_of([8400], dtype=dtype, num_items=18_000, num_stamps=6)

    done = assert_resolves_as_the_reference(slots, request([row], [0], stamp, LATE), device)

    assert int(done.plan.miss_count[0]) == sum(item % 2 or item > 16_800 for item in row)


def test_a_late_hit_beyond_a_block_keeps_its_stamp(device: str) -> None:
    torch.manual_seed(0)
    slots = slots_of([8400], num_items=18_000, num_stamps=3)
    late = int(slots.ranges.slot_base[0]) + 8300
    slots.state.slot_stamp[late] = 7
    row = [0, 2, int(slots.state.slot_item[late])]

    done = assert_resolves_as_the_reference(slots, request([row], [0], 5, 5), device)

    assert done.state.slot_stamp[late] == 7


def test_one_item_a_row_is_resolved_for_many_sequences(device: str) -> None:
    torch.manual_seed(0)
    items = torch.randint(0, 60, (40, 1))
    row_seq = torch.randperm(41)[:40]

    done = assert_resolves_as_the_reference(
        slots_of([20] * 41), request(items, row_seq.tolist(), LATE, LATE), device
    )

    assert 5 < int(done.plan.miss_count.sum()) < 35


def full_rows(num_seqs: int, misses: int, k: int) -> Request:
    """Ascending rows of so many misses beside hits, all below `CONTEXT`."""
    rows = []
    for _ in range(num_seqs):
        hits = 2 * torch.randperm(HOT_SLOTS)[: k - misses]
        missed = 2 * torch.randperm(CONTEXT // 2)[:misses] + 1
        rows.append(torch.cat([hits, missed]).sort().values)
    return request(torch.stack(rows), torch.randperm(num_seqs).tolist(), LATE, LATE)


@pytest.mark.gpu
@pytest.mark.parametrize("num_seqs", [1, 8, 128])
@pytest.mark.parametrize(("misses", "k"), [(0, TOPK), (41, TOPK), (614, TOPK), (0, 1), (1, 1)])
def test_full_rows_give_the_references_slots_in_every_run(
    num_seqs: int, misses: int, k: int
) -> None:
    torch.manual_seed(0)
    slots: Slots = slots_of([HOT_SLOTS] * num_seqs, num_items=CONTEXT, cap=HOT_SLOTS, num_stamps=50)
    start, wanted = slots.to("cuda"), full_rows(num_seqs, misses, k)
    expected_slots = run_ref(slots, wanted)

    for _ in range(20):
        found = start.to("cuda")
        assert_bits_equal(run_triton(found, wanted).cpu(), expected_slots)
        assert_same_slots(found, slots)
