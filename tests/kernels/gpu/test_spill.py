import pytest
import torch

from accuracy import assert_bits_equal
from cases import PAGE_EDGES
from hisparse_kernels.gpu.spill import spill_triton
from hisparse_kernels.spill import HotPlaces, spill_ref
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay

ROW_BYTES = pytest.mark.parametrize("row_bytes", [132, 528, 656, 1152, 2304])


def random_rows(count: int, row_bytes: int, *, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randint(0, 256, (count, row_bytes)).byte()


@ROW_BYTES
@pytest.mark.parametrize("count", [0, *PAGE_EDGES])
def test_rows_arrive_where_the_reference_puts_them(row_bytes: int, count: int, device: str) -> None:
    rows, expected = random_rows(count, row_bytes), random_rows(6 * 64, row_bytes, seed=1)
    host, dst = expected.clone().to(device), torch.randperm(6 * 64)[:count]
    dst[::7] = -1
    spill_ref(rows, dst, expected)

    spill_triton(rows.to(device), dst.to(device), host)

    assert_bits_equal(host.cpu(), expected)


@pytest.mark.parametrize("row_bytes", [1, 2, 3, 10])
def test_rows_of_an_odd_number_of_bytes_are_copied(row_bytes: int, device: str) -> None:
    rows, expected = random_rows(9, row_bytes), random_rows(64, row_bytes, seed=1)
    host, dst = expected.clone().to(device), torch.randperm(64)[:9]
    spill_ref(rows, dst, expected)

    spill_triton(rows.to(device), dst.to(device), host)

    assert_bits_equal(host.cpu(), expected)


def test_strided_rows_and_slot_columns_are_copied(device: str) -> None:
    rows, slots = random_rows(8, 656)[::2], torch.tensor([[5, 0], [-1, 0], [63, 0], [0, 0]])
    expected = random_rows(64, 656, seed=1)
    host = expected.clone().to(device)
    spill_ref(rows, slots[:, 0], expected)

    spill_triton(rows.to(device), slots.to(device)[:, 0], host)

    assert_bits_equal(host.cpu(), expected)


def test_padding_rows_alone_change_nothing(device: str) -> None:
    host = random_rows(64, 656)

    target = host.clone().to(device)
    spill_triton(random_rows(3, 656).to(device), torch.full((3,), -1, device=device), target)

    assert_bits_equal(target.cpu(), host)


def hot_places(count: int, row_bytes: int, table: torch.dtype) -> HotPlaces:
    """Items of sequences of 50 positions and 8 slots each, a third of which have no slot."""
    seq, item = torch.arange(count), torch.randint(0, 50, (count,)).int()
    slot_table = torch.full((50 * count,), -1, dtype=table)
    slot_table[seq * 50 + item] = torch.randint(0, 8, (count,)).to(table)
    slot_table[(seq * 50 + item)[::3]] = -1
    rows = random_rows(8 * count + 5, row_bytes, seed=2)
    bases = seq * 50, 5 + seq * 8
    return HotPlaces(rows, item, slot_table, *bases, torch.full((count,), 7, dtype=torch.int32))


@ROW_BYTES
@pytest.mark.parametrize("table", [torch.int16, torch.int32])
@pytest.mark.parametrize("count", [1, 13, 65])
def test_rows_are_placed_in_the_slots_of_their_items(
    row_bytes: int, table: torch.dtype, count: int, device: str
) -> None:
    torch.manual_seed(count)
    rows, expected = random_rows(count, row_bytes), random_rows(2 * 64, row_bytes, seed=1)
    host, dst = expected.clone().to(device), torch.randperm(2 * 64)[:count]
    dst[::7] = -1
    hot = hot_places(count, row_bytes, table)
    found = HotPlaces(*(value.to(device, copy=True) for value in vars(hot).values()))
    before = hot.rows.clone()
    spill_ref(rows, dst, expected, hot)

    spill_triton(rows.to(device), dst.to(device), host, found)

    assert_bits_equal(host.cpu(), expected)
    assert_bits_equal(found.rows.cpu(), hot.rows)
    assert hot.num_placed is not None
    assert found.num_placed is not None
    assert_bits_equal(found.num_placed.cpu(), hot.num_placed)
    num_changed = int((hot.rows != before).any(1).sum())
    assert (
        int(hot.num_placed.sum())
        == num_changed
        == int(((dst >= 0) & (torch.arange(count) % 3 > 0)).sum())
    )


@pytest.mark.gpu
@ROW_BYTES
def test_rows_past_two_to_the_31_bytes_arrive(row_bytes: int) -> None:
    num_rows = 2**31 // row_bytes + 65
    host = torch.empty(num_rows, row_bytes, dtype=torch.uint8, device="cuda")
    dst = torch.tensor([num_rows - 1, 0, num_rows - 64])
    rows = random_rows(3, row_bytes)

    spill_triton(rows.cuda(), dst.cuda(), host)

    assert_bits_equal(host[dst.cuda()].cpu(), rows)


@pytest.mark.gpu
@ROW_BYTES
def test_a_large_spill_is_the_same_in_every_run(row_bytes: int) -> None:
    rows, dst = random_rows(4096, row_bytes), torch.randperm(100 * 64)[:4096]
    dst[::5] = -1
    before = random_rows(100 * 64, row_bytes, seed=1)
    expected = before.clone()
    spill_ref(rows, dst, expected)
    rows, dst = rows.cuda(), dst.cuda()

    for _ in range(20):
        host = before.cuda()
        spill_triton(rows, dst, host)
        assert_bits_equal(host.cpu(), expected)


@pytest.mark.gpu
def test_a_graph_spills_new_rows_to_new_places() -> None:
    held = [random_rows(4, 656).cuda(), torch.tensor([3, -1, 7, 9]).cuda()]
    wanted = [random_rows(4, 656, seed=2), torch.tensor([63, 2, -1, 0])]
    expected = random_rows(64, 656, seed=1)
    host = expected.cuda()

    assert_allocates_nothing(lambda: spill_triton(*held, host))
    replay(lambda: spill_triton(*held, host), [*held, host], [*wanted, expected])

    spill_ref(*wanted, expected)
    assert_bits_equal(host.cpu(), expected)


def test_rows_of_a_rank_that_does_not_write_are_placed_as_those_of_one_that_does(
    device: str,
) -> None:
    torch.manual_seed(3)
    rows, dst = random_rows(13, 656), torch.randperm(64)[:13]
    dst[::7] = -1
    hot = hot_places(13, 656, torch.int16)
    found = HotPlaces(*(value.to(device, copy=True) for value in vars(hot).values()))
    before = hot.rows.clone()
    spill_ref(rows, dst, None, hot)
    assert not torch.equal(hot.rows, before)

    spill_triton(rows.to(device), dst.to(device), None, found)

    assert_bits_equal(found.rows.cpu(), hot.rows)
    assert found.num_placed is not None
    assert hot.num_placed is not None
    assert_bits_equal(found.num_placed.cpu(), hot.num_placed)
