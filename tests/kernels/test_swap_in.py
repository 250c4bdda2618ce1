import pytest
import torch

from accuracy import assert_bits_equal
from hisparse_kernels.resolve import MissPlan
from hisparse_kernels.spill import spill
from hisparse_kernels.swap_in import FreshRows, swap_in, swap_in_blocks

ROW_BYTES = [132, 528, 656, 1152, 2304]


def pool(rows: int, row_bytes: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, (rows, row_bytes)).byte()


def plan_of(misses: list[list[tuple[int, int]]], cap: int = 6) -> MissPlan:
    """A plan with (item, slot) pairs per sequence; entries beyond the count are wild numbers."""
    item, dst = torch.full((2, len(misses), cap), 2**30).int()
    for seq, pairs in enumerate(misses):
        for rank, (one_item, slot) in enumerate(pairs):
            item[seq, rank], dst[seq, rank] = one_item, slot
    count = torch.tensor([len(pairs) for pairs in misses]).int()
    return MissPlan(item, dst, count, count)


@pytest.mark.parametrize("row_bytes", ROW_BYTES)
def test_missed_rows_arrive_byte_for_byte_and_others_stay(row_bytes: int) -> None:
    host, hot = pool(9 * 64, row_bytes), pool(20, row_bytes)
    page_table = torch.tensor([[7, 2, -1], [0, 8, 3], [5, -1, -1]]).int()
    misses = [[(0, 4), (63, 19), (64, 0), (127, 7)], [], [(5, 11)]]
    expected = hot.clone()
    for seq, pairs in enumerate(misses):
        for item, slot in pairs:
            expected[slot] = host[int(page_table[seq, item // 64]) * 64 + item % 64]

    swap_in(host, page_table, plan_of(misses), hot)

    assert_bits_equal(hot, expected)


def test_fresh_rows_come_from_the_step_and_are_counted() -> None:
    host, hot, rows = pool(9 * 64, 656), pool(20, 656), pool(6, 656) ^ 255
    page_table = torch.tensor([[7, 2], [0, 8], [5, -1]]).int()
    first_item, first_row = torch.tensor([65, 100, 3]).int(), torch.tensor([0, 3, 4]).int()
    misses = [[(0, 4), (64, 0), (65, 7), (67, 1)], [(5, 11), (99, 2)], [(4, 19)]]
    expected = hot.clone()
    expected[4], expected[0] = host[7 * 64], host[2 * 64]
    expected[7], expected[1] = rows[0], rows[2]
    expected[11], expected[2] = host[5], host[8 * 64 + 35]
    expected[19] = rows[5]
    counts = torch.full((3,), 77).int()
    before = host.clone()

    swap_in(host, page_table, plan_of(misses), hot, FreshRows(rows, first_item, first_row, counts))

    assert_bits_equal(hot, expected)
    assert_bits_equal(host, before)
    assert counts.tolist() == [2, 0, 1]


def test_a_plan_without_misses_copies_nothing() -> None:
    host, hot = pool(64, 656), pool(4, 656)
    before = hot.clone()

    swap_in(host, torch.zeros(2, 1).int(), plan_of([[], []]), hot)

    assert_bits_equal(hot, before)


@pytest.mark.parametrize("pages_per_block", [1, 2, 3])
def test_missed_blocks_arrive_whole_and_pages_not_there_yet_are_left(pages_per_block: int) -> None:
    host, window = pool(20, 8448), pool(6 * pages_per_block, 8448)
    page_table = torch.full((2, 3 * pages_per_block), -1).int()
    page_table[0, : 2 * pages_per_block + 1] = torch.randperm(20)[: 2 * pages_per_block + 1].int()
    page_table[1, :1] = 3
    misses = [[(0, 5), (2, 0)], [(0, 2)]]
    expected = window.clone()
    for seq, pairs in enumerate(misses):
        for block, slot in pairs:
            for part in range(pages_per_block):
                page = int(page_table[seq, block * pages_per_block + part])
                if page >= 0:
                    expected[slot * pages_per_block + part] = host[page]

    swap_in_blocks(host, page_table, plan_of(misses), window, 64 * pages_per_block)

    assert_bits_equal(window, expected)


def test_a_block_that_passes_the_page_tables_width_copies_what_exists() -> None:
    host, window = pool(4, 8448), pool(4, 8448)
    expected = window.clone()
    expected[2] = host[1]

    swap_in_blocks(host, torch.tensor([[0, 2, 1]]).int(), plan_of([[(1, 1)]]), window, 128)

    assert_bits_equal(window, expected)


@pytest.mark.parametrize("row_bytes", ROW_BYTES)
def test_spilled_rows_swap_in_again_byte_for_byte(row_bytes: int) -> None:
    host, rows = (
        pool(5 * 64, row_bytes),
        torch.arange(256).byte().repeat(3, row_bytes)[:, :row_bytes],
    )
    rows[1], rows[2] = 255, 127  # NaN codes are bytes like any other
    before = host.clone()
    dst = torch.tensor([130, -1, 64])

    spill(rows, dst, host)

    before[130], before[64] = rows[0], rows[2]
    assert_bits_equal(host, before)
    hot = torch.zeros(2, row_bytes).byte()
    swap_in(host, torch.tensor([[1, 2]]).int(), plan_of([[(0, 1), (66, 0)]]), hot)
    assert_bits_equal(hot, rows[[0, 2]])


def test_spilling_no_rows_changes_nothing() -> None:
    host = pool(64, 656)
    before = host.clone()

    spill(pool(0, 656), torch.zeros(0).long(), host)
    spill(pool(3, 656), torch.tensor([-1, -1, -1]), host)

    assert_bits_equal(host, before)


def test_offsets_past_two_to_the_31_bytes_reach_the_right_row() -> None:
    rows = 3_400_000  # of 656 bytes: 2.23e9 bytes, never touched but for two pages
    host = torch.empty(rows, 656, dtype=torch.uint8)
    row = pool(1, 656)
    page = rows // 64 - 1
    plan = plan_of([[(63, 1)]], cap=1)
    hot = torch.zeros(2, 656).byte()

    spill(row, torch.tensor([page * 64 + 63]), host)
    swap_in(host, torch.tensor([[page]]).int(), plan, hot)

    assert_bits_equal(hot[1:], row)
