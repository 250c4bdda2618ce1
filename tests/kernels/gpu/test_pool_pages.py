"""`pool_full_pages` has the bits of its reference."""

import pytest
import torch

from accuracy import assert_bits_equal
from cases import NAN_BYTE, on, paged_keys
from hisparse_kernels.gpu.pool_pages import pool_full_pages_triton
from hisparse_kernels.layouts import INDEX_LAYOUTS, IndexLayout, index_layout
from hisparse_kernels.pool_pages import pool_full_pages_ref
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("layout", INDEX_LAYOUTS.values(), ids=INDEX_LAYOUTS.keys())
def test_pooled_pages_are_the_references(
    layout: IndexLayout, kind: torch.dtype, device: str
) -> None:
    stored = paged_keys((300, 64, 700), layout)
    pages = torch.cat(
        [stored.page_table[0, :4], stored.page_table[1, :1], stored.page_table[2, :10]]
    )
    rows = torch.cat([pages * 64 + 63, pages * 64 + 5, torch.tensor([-1])]).to(kind)
    room = torch.full((1, layout.page_bytes), NAN_BYTE).byte()
    expected, found = room.clone(), room.clone().to(device)

    pool_full_pages_ref(stored.index_pages, rows, expected, layout)
    pool_full_pages_triton(*on(device, stored.index_pages, rows), found, layout)

    assert not torch.equal(expected, room)
    assert_bits_equal(found.cpu(), expected)


def test_no_rows_pool_nothing(device: str) -> None:
    layout = index_layout("fp8")
    pages, room = torch.zeros(2, 1, layout.page_bytes, dtype=torch.uint8, device=device)
    rows = torch.empty(0, dtype=torch.int64, device=device)

    pool_full_pages_triton(pages, rows, room, layout)

    assert not room.any()


@pytest.mark.gpu
def test_a_graph_follows_new_rows_and_allocates_nothing() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((640,), layout)
    pages = stored.page_table[0, :10].long()
    index_pages, rows = on("cuda", stored.index_pages, pages[:2] * 64 + 63)
    pooled = torch.zeros(1, layout.page_bytes, dtype=torch.uint8, device="cuda")
    changed = (torch.stack([pages[4] * 64 + 63, pages[5] * 64 + 62]),)

    def call() -> None:
        pool_full_pages_triton(index_pages, rows, pooled, layout)

    replay(call, (rows,), changed)

    expected = torch.zeros(1, layout.page_bytes, dtype=torch.uint8)
    for written in (pages[:2] * 64 + 63, *changed):
        pool_full_pages_ref(stored.index_pages, written, expected, layout)
    assert_bits_equal(pooled.cpu(), expected)
    assert_allocates_nothing(call)
