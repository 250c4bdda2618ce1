import pytest
import torch

from hisparse_kernels.gpu.resolve import release_items_triton
from hisparse_kernels.resolve import release_items, release_items_ref
from tests.kernels.gpu.graphs import assert_allocates_nothing
from tests.kernels.gpu.slot_states import (
    Slots,
    assert_resolves_as_the_reference,
    assert_same_slots,
    request,
    slots_of,
)

TABLES = pytest.mark.parametrize("dtype", [torch.int16, torch.int32], ids=["int16", "int32"])


def assert_releases_as_the_reference(slots: Slots, seq: int, first_item: int, device: str) -> Slots:
    """From the same state on both; returns what the state is then, on the CPU."""
    expected, found = slots.to("cpu"), slots.to(device)
    release_items_ref(expected.state, expected.ranges, seq, first_item)

    release_items_triton(found.state, found.ranges, seq, first_item)

    assert_same_slots(found, expected)
    return expected


@TABLES
@pytest.mark.parametrize("held", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("first_item", [0, 1, 2, 31, 78, 79, 300])
def test_later_items_leave_their_slots_and_all_else_stays(
    first_item: int, held: float, dtype: torch.dtype, device: str
) -> None:
    torch.manual_seed(0)
    slots = slots_of([20, 40, 1], held=held, dtype=dtype)

    done = assert_releases_as_the_reference(slots, 1, first_item, device)

    own = done.own_slots(1)
    kept = slots.state.slot_item[own] < first_item
    assert torch.equal(done.state.slot_item[own], slots.state.slot_item[own].where(kept, -1))


@pytest.mark.parametrize("seq", [0, 2])
def test_the_first_and_the_last_sequence_are_released(seq: int, device: str) -> None:
    torch.manual_seed(0)

    done = assert_releases_as_the_reference(slots_of([20, 40, 1]), seq, 0, device)

    assert done.state.slot_item[done.own_slots(seq)].max() == -1


def test_more_slots_than_all_programs_have_lanes_are_released(device: str) -> None:
    torch.manual_seed(0)
    slots = slots_of([33000, 5], num_items=66000, dtype=torch.int32)

    assert_releases_as_the_reference(slots, 0, 41, device)


def test_released_slots_are_the_first_to_be_taken(device: str) -> None:
    torch.manual_seed(0)
    slots = slots_of([20, 9], num_stamps=20)

    released = assert_releases_as_the_reference(slots, 0, 30, device)
    wanted = request([[31, 33, 30, 35, 37]], [0], 50, 0)  # protects every slot that is not free
    done = assert_resolves_as_the_reference(released, wanted, device)

    free = (released.state.slot_item == -1).nonzero()[:, 0].tolist()
    assert done.plan.miss_dst[0, :5].tolist() == free[:5]


@pytest.mark.gpu
def test_the_public_op_releases_on_the_gpu_and_allocates_nothing() -> None:
    torch.manual_seed(0)
    expected = slots_of([4097] * 8, num_items=131072)
    found = expected.to("cuda")
    release_items_ref(expected.state, expected.ranges, 5, 6000)

    assert_allocates_nothing(lambda: release_items(found.state, found.ranges, 5, 6000))

    assert_same_slots(found, expected)
