"""Resolve over many steps in the interpreter, and at full sizes on a GPU."""

from functools import partial

import pytest
import torch

from accuracy import assert_bits_equal
from hisparse_kernels.gpu.resolve import release_items_triton, resolve_triton
from hisparse_kernels.resolve import SlotRanges, SlotState, release_items_ref, resolve
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay
from tests.kernels.gpu.slot_states import (
    FOREIGN,
    Request,
    Slots,
    assert_resolves_as_the_reference,
    assert_same_plan,
    assert_same_slots,
    request,
    run_ref,
    run_triton,
    slots_of,
)

HOT_SLOTS, TOPK, CONTEXT = 4096 + 1, 2048, 128 * 1024


def random_request(step: int, num_items: int) -> Request:
    """Rows of random sequences, some padding, some drafts that repeat most of the row before."""
    num_rows = int(torch.randint(1, 7, ()))
    row_seq = torch.randint(-1, 4, (num_rows,))
    items = torch.randint(-3, int(torch.randint(5, num_items, ())), (num_rows, 9)).clamp(min=-1)
    if step % 3:
        items = items.sort(1).values
    for row in range(1, num_rows, 2):
        row_seq[row] = row_seq[row - 1]
        items[row, :6] = items[row - 1, :6]
    stamp = 2 * step + int(torch.randint(0, 2, ()))  # of a stream, or of the step itself
    return request(items, row_seq.tolist(), stamp, 2 * step + 1)


def release_both(found: Slots, expected: Slots, seq: int, first_item: int) -> None:
    release_items_triton(found.state, found.ranges, seq, first_item)
    release_items_ref(expected.state, expected.ranges, seq, first_item)


@pytest.mark.parametrize(("dtype", "after"), [(torch.int16, None), (torch.int32, 3)])
def test_a_random_life_goes_as_the_references(
    dtype: torch.dtype, after: int | None, device: str
) -> None:
    torch.manual_seed(0)
    expected = slots_of([24, 2, 60, 33], cap=20, dtype=dtype, held=0.3, after=after)
    found, refusals = expected.to(device), 0
    for step in range(3, 63):
        wanted = random_request(step, 300)
        expected_slots = run_ref(expected, wanted)

        assert_bits_equal(run_triton(found, wanted).cpu(), expected_slots)
        assert_same_slots(found, expected)

        refusals += int((expected.plan.miss_count < 0).sum())
        if step % 7 == 0:  # drafts were rejected, or the sequence is a new one
            release_both(found, expected, step % 4, int(torch.randint(0, 200, ())) * (step % 2))
            assert_same_slots(found, expected)
    assert 5 < refusals < 100


def drift(current: torch.Tensor, num_items: int) -> torch.Tensor:
    """Selections [seqs, k] that share nine tenths with those before; ascending, none twice."""
    chance = torch.rand(len(current), num_items)
    chance.scatter_add_(1, current, torch.ones(current.shape))
    chance -= 2.0 * (torch.rand(chance.shape) < 0.1)
    return chance.topk(current.shape[1], dim=1).indices.sort(1).values


@pytest.mark.gpu
def test_a_thousand_steps_of_eight_sequences_go_as_the_references() -> None:
    torch.manual_seed(0)
    expected = slots_of([513] * 8, num_items=4096, cap=256, num_stamps=3)
    found, current, misses = expected.to("cuda"), torch.arange(256).repeat(8, 1), 0
    for step in range(10, 1010):
        current = drift(current, 4096)
        wanted = request(current, list(range(8)), step, step)
        expected_slots = run_ref(expected, wanted)

        assert_bits_equal(run_triton(found, wanted).cpu(), expected_slots)
        assert_same_plan(found, expected)

        misses += int(expected.plan.miss_count.sum())
        if step % 50 == 0:
            release_both(found, expected, step // 50 % 8, step % 4096)
    assert_same_slots(found, expected)
    assert 10 < misses / 8000 < 128  # a step misses some of its items, and not most


def full_size(
    num_seqs: int, drafts: int, *, slots: int = HOT_SLOTS, num_items: int = CONTEXT
) -> Request:
    """Nine tenths of a row are resident; drafts share three quarters of their items."""
    rows = torch.randint(0, num_items // 2, (num_seqs, drafts, TOPK)) * 2 + 1
    rows[:, :, TOPK // 10 :] = (
        torch.rand(num_seqs, drafts, slots).topk(TOPK - TOPK // 10).indices * 2
    )
    rows[:, 1:, TOPK // 4 :] = rows[:, :1, TOPK // 4 :]
    row_seq = torch.arange(num_seqs).repeat_interleave(drafts)
    return request(rows.sort(2).values.flatten(0, 1), row_seq.tolist(), 9000, 9000)


@pytest.mark.gpu
@pytest.mark.parametrize("num_stamps", [40, 4097])
@pytest.mark.parametrize(("num_seqs", "drafts"), [(1, 1), (8, 2), (128, 1)])
def test_full_sizes_give_the_references_slots_in_every_run(
    num_seqs: int, drafts: int, num_stamps: int
) -> None:
    torch.manual_seed(0)
    slots = slots_of([HOT_SLOTS] * num_seqs, num_items=CONTEXT, cap=4096, num_stamps=num_stamps)
    start, wanted = slots.to("cuda"), full_size(num_seqs, drafts)
    first, first_slots = start.to("cuda"), run_ref(slots, wanted)
    assert slots.plan.miss_count.min() > TOPK // 20

    assert_bits_equal(run_triton(first, wanted).cpu(), first_slots)

    assert_same_slots(first, slots)
    for _ in range(19):
        again = start.to("cuda")
        assert_bits_equal(run_triton(again, wanted), first_slots.to("cuda"))
        for found, expected in zip(again.changing(), first.changing(), strict=True):
            assert_bits_equal(found, expected)


@pytest.mark.gpu
def test_more_slots_than_16_bits_number_are_resolved() -> None:
    torch.manual_seed(0)
    slots = slots_of(
        [65_600] * 2, num_items=140_000, cap=4096, dtype=torch.int32, num_stamps=65_600
    )

    done = assert_resolves_as_the_reference(
        slots, full_size(2, 1, slots=65_600, num_items=140_000), "cuda"
    )

    assert done.plan.miss_dst[0, : int(done.plan.miss_count[0])].max() > 32_768


@pytest.mark.gpu
@pytest.mark.parametrize("drafts", [1, 2])
def test_a_table_past_two_to_the_31_entries_is_resolved_and_released(drafts: int) -> None:
    torch.manual_seed(0)
    expected = slots_of([HOT_SLOTS] * 2, num_items=CONTEXT, cap=4096)
    wanted, near, far = full_size(2, drafts), expected.to("cuda"), 2**31 + 64
    entries = len(near.state.slot_table)
    table = torch.full((far + entries,), FOREIGN, dtype=torch.int16, device="cuda")
    table[far:] = near.state.slot_table
    ranges = SlotRanges(near.ranges.slot_base, near.ranges.slot_count, near.ranges.table_base + far)
    state = SlotState(near.state.slot_item, near.state.slot_stamp, table)
    beyond = Slots(state, ranges, near.plan)
    expected_slots = run_ref(expected, wanted)
    release_items_ref(expected.state, expected.ranges, 1, 5000)

    assert_bits_equal(run_triton(beyond, wanted).cpu(), expected_slots)
    release_items_triton(state, ranges, 1, 5000)

    tail = SlotState(state.slot_item, state.slot_stamp, table[far:])
    assert_same_slots(Slots(tail, ranges, near.plan), expected)
    assert table[:far].amin() == table[:far].amax() == FOREIGN


@pytest.mark.gpu
@pytest.mark.parametrize("op", [resolve, resolve_triton], ids=["public", "kernel"])
def test_a_graph_follows_new_items_rows_stamps_and_states(op: object) -> None:
    torch.manual_seed(0)
    first, second = (full_size(8, 1) for _ in range(2))
    new = Request(second.items, second.row_seq.flip(0), second.stamps + 7)
    new.row_seq[[0, 5]] = -1
    expected = slots_of([HOT_SLOTS] * 8, num_items=CONTEXT, cap=2048, num_stamps=30)
    found, held = expected.to("cuda"), [tensor.cuda() for tensor in vars(first).values()]
    out = torch.empty_like(held[0])
    assert callable(op)
    call = partial(op, *held[:2], found.state, found.ranges, held[2], found.plan, out)
    changing = [*held, *vars(found.state).values()]

    assert_allocates_nothing(call)
    replay(call, changing, [*vars(new).values(), *vars(expected.state).values()])

    assert_bits_equal(out.cpu(), run_ref(expected, new))
    assert_same_slots(found, expected)
