import pytest
import torch

from accuracy import assert_bits_equal
from cases import NAN_BYTE, paged_keys
from hisparse_kernels.index_rows import read_index_rows
from hisparse_kernels.layouts import INDEX_LAYOUTS, IndexLayout, index_layout
from hisparse_kernels.pool_keys import rebuild_pooled_keys
from hisparse_kernels.pool_pages import pool_full_pages

LAYOUTS = pytest.mark.parametrize("layout", INDEX_LAYOUTS.values(), ids=INDEX_LAYOUTS.keys())


def pooled_room(num_pages: int, layout: IndexLayout) -> torch.Tensor:
    return torch.full((-(-num_pages // 64), layout.page_bytes), NAN_BYTE).byte()


@LAYOUTS
def test_a_full_page_has_the_bits_of_a_rebuilt_block_of_one_page(layout: IndexLayout) -> None:
    stored = paged_keys((300, 64, 700), layout)
    rebuilt = torch.full((3, layout.page_bytes), NAN_BYTE).byte()
    state, base = torch.arange(3), torch.arange(3) * 64
    where = stored.index_pages, stored.page_table, stored.lengths
    rebuild_pooled_keys(*where, torch.zeros(3, 128), state, rebuilt, base, 64, layout)
    pooled = pooled_room(len(stored.index_pages), layout)

    for seq, length in enumerate((300, 64, 700)):
        rows = stored.page_table[seq].long().repeat_interleave(64) * 64
        rows = (rows + torch.arange(len(rows)) % 64)[:length]
        pool_full_pages(stored.index_pages, rows, pooled, layout)

    for seq, length in enumerate((300, 64, 700)):
        full = torch.arange(length // 64)
        found = read_index_rows(pooled, stored.page_table[seq, full].long(), layout)
        assert_bits_equal(found, read_index_rows(rebuilt, base[seq] + full, layout))


def test_only_last_rows_of_pages_count() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((640,), layout)
    pooled = pooled_room(len(stored.index_pages), layout)
    untouched = pooled.clone()
    page = int(stored.page_table[0, 3])

    pool_full_pages(stored.index_pages, torch.tensor([-1, page * 64 + 62]), pooled, layout)
    assert_bits_equal(pooled, untouched)

    pool_full_pages(stored.index_pages, torch.tensor([page * 64 + 63, -1]), pooled, layout)
    others = torch.arange(64) != page
    written = read_index_rows(pooled, torch.arange(64), layout)
    assert bool((written[others] == NAN_BYTE).all())
    assert not bool((written[page] == NAN_BYTE).all())


def test_a_page_that_is_written_again_is_pooled_again() -> None:
    layout = index_layout("fp8")
    first, second = paged_keys((64,), layout), paged_keys((64,), layout, seed=5)
    page = int(first.page_table[0, 0])
    last = torch.tensor([page * 64 + 63], dtype=torch.int32)
    once, twice = (pooled_room(len(first.index_pages), layout) for _ in range(2))
    moved = first.index_pages.clone()
    moved[page] = second.index_pages[second.page_table[0, 0]]

    pool_full_pages(first.index_pages, last, twice, layout)
    pool_full_pages(moved, last, twice, layout)
    pool_full_pages(moved, last, once, layout)

    assert_bits_equal(twice, once)


def test_too_little_room_is_refused_with_both_numbers() -> None:
    layout = index_layout("fp8")
    pages = torch.zeros(65, layout.page_bytes).byte()

    with pytest.raises(ValueError, match="64, needs at least 65"):
        pool_full_pages(pages, torch.tensor([63]), pages[:1].clone(), layout)
