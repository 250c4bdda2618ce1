import pytest
import torch

from accuracy import TOLERANCES, assert_bits_equal, assert_near_largest
from cases import NAN_BYTE, PagedKeys, on, paged_keys, queries, queries_of
from hisparse_kernels.gpu.refine_logits import refine_logits_triton
from hisparse_kernels.layouts import PAGE_TOKENS, index_layout
from hisparse_kernels.refine_logits import HostBlocks, refine_logits_ref
from tests.kernels.gpu.graphs import assert_allocates_nothing, pinned_on_gpu, replay
from tests.kernels.gpu.refining import (
    F8,
    F32,
    LENGTHS,
    PATHS,
    UNTOUCHED,
    chosen_blocks,
    int32,
    refined,
    untouched,
)


def on_host(stored: PagedKeys) -> tuple[torch.Tensor, torch.Tensor]:
    """The same pages in another order, so that a block's are not adjacent, and their table."""
    order = torch.randperm(len(stored.index_pages))
    pages = torch.empty_like(stored.index_pages)
    pages[order] = stored.index_pages
    table = order[stored.page_table.clamp(min=0).long()]
    return pages, table.masked_fill(stored.page_table < 0, -1).int()


def window_with(stored: PagedKeys, slots: torch.Tensor, block_tokens: int) -> torch.Tensor:
    """The window with the blocks in those slots; all other bytes are NaN."""
    window = torch.full_like(stored.index_pages, NAN_BYTE).view(
        -1, block_tokens // PAGE_TOKENS * stored.index_pages.shape[1]
    )
    held = slots[slots >= 0].unique().long()
    window[held] = stored.index_pages.view_as(window)[held]
    return window.view_as(stored.index_pages)


@PATHS
def test_blocks_on_the_host_have_the_bits_that_they_have_in_the_window(
    layout: str, dtype: torch.dtype, block_tokens: int, heads: int, device: str
) -> None:
    rows = index_layout(layout)
    stored = paged_keys(LENGTHS, rows, block_tokens=block_tokens)
    row_seq, row_pos = int32(3, 3, 2, 1, 0, 3), int32(699, 300, 191, 40, 0, 65)
    slots, ids = chosen_blocks(stored, row_seq, 4, block_tokens)
    index_q, weights = queries_of(dtype, len(row_seq), heads)
    whole = index_q, weights, stored.index_pages, slots, ids, row_pos
    kept = slots.masked_fill(torch.rand(slots.shape) < 0.6, -1)
    parted = *whole[:2], window_with(stored, kept, block_tokens), kept, *whole[4:]
    pages, table = on_host(stored)

    host = HostBlocks(*on(device, pages, table, row_seq))
    found = refined(parted, block_tokens, rows, device, host)

    assert bool((kept != slots).any())
    assert_bits_equal(found, refined(whole, block_tokens, rows, device))


@pytest.mark.parametrize("block_tokens", [64, 128, 192])
def test_what_the_host_does_not_have_is_no_token_and_without_an_id_nothing(
    block_tokens: int, device: str
) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((700, 700), layout, block_tokens=block_tokens)
    pages, table = on_host(stored)
    table[0, 1:3] = -1
    table[1, 9:] = -1
    table[1, 2], table[1, 3] = len(pages), 2**31 - 1  # no pages of the host's
    row_seq, row_pos = int32(0, 1, -1, 1), int32(5000, 699, -1, 250)
    ids = torch.arange(4).int().repeat(4, 1)
    ids[:, 2] = -1
    ids[0, 3] = table.shape[1] * 64 // block_tokens  # beyond its row of the table
    slots = torch.full_like(ids, -1)
    window = torch.full((block_tokens // 64, layout.page_bytes), NAN_BYTE).byte()
    inputs = *queries(4, 8), window, slots, ids, row_pos
    expected = untouched(4, 4 * block_tokens)
    refine_logits_ref(*inputs, block_tokens, layout, expected, HostBlocks(pages, table, row_seq))

    host = HostBlocks(*on(device, pages, table, row_seq))
    found = refined(inputs, block_tokens, layout, device, host)

    assert_bits_equal((found == UNTOUCHED), (expected == UNTOUCHED))
    assert_near_largest(
        found.masked_fill(found == UNTOUCHED, 0.0),
        expected.masked_fill(expected == UNTOUCHED, 0.0),
        TOLERANCES[F32],
    )
    assert bool((found[2] == UNTOUCHED).all())
    assert bool((found[0, 64:128] == -torch.inf).all())


@pytest.mark.gpu
def test_blocks_are_read_from_pinned_memory_in_place() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((32768,), layout, block_tokens=128)
    row_seq = torch.zeros(16).int()
    slots, ids = chosen_blocks(stored, row_seq, 64, 128)
    index_q, weights = queries_of(F8, 16, 64)
    whole = index_q, weights, stored.index_pages, slots, ids, torch.full((16,), 32767).int()
    kept = slots.masked_fill(torch.rand(slots.shape) < 0.3, -1)
    parted = *whole[:2], window_with(stored, kept, 128), kept, *whole[4:]
    pages, table = on_host(stored)

    host = HostBlocks(pinned_on_gpu(pages), *on("cuda", table, row_seq))
    found = refined(parted, 128, layout, "cuda", host)

    assert_bits_equal(found, refined(whole, 128, layout, "cuda"))


@pytest.mark.gpu
def test_host_pages_past_two_to_the_31_bytes_are_addressed() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((128,), layout, block_tokens=128)
    num_pages = 2**31 // layout.page_bytes + 5
    pages = torch.full((num_pages, layout.page_bytes), NAN_BYTE, dtype=torch.uint8, device="cuda")
    pages[[-1, -3]] = stored.index_pages[stored.page_table[0].long()].cuda()
    inputs = *queries_of(F8, 1, 64), stored.index_pages
    slots, ids = chosen_blocks(stored, int32(0), 1, 128)

    host = HostBlocks(pages, *on("cuda", int32(num_pages - 1, num_pages - 3)[None], int32(0)))
    found = refined((*inputs, int32(-1)[None], ids, int32(100)), 128, layout, "cuda", host)

    assert_bits_equal(found, refined((*inputs, slots, ids, int32(100)), 128, layout, "cuda"))
    assert bool(found[0, :101].isfinite().all())


@pytest.mark.gpu
def test_a_graph_follows_new_blocks_and_positions_and_allocates_nothing() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((900, 300), layout, block_tokens=128)
    row_seq, new_seq = int32(0, -1, -1, 1), int32(1, 0, -1, 0)
    row_pos, new_pos = int32(40, -1, -1, 299), int32(299, 899, -1, 128)
    old, new = (chosen_blocks(stored, seq, 4, 128) for seq in (row_seq, new_seq))
    pages, table = on_host(stored)
    pool = on("cuda", *queries_of(F8, 4, 64), stored.index_pages)
    held = on("cuda", *old, row_pos, row_seq)
    host = HostBlocks(*on("cuda", pages, table), held[3])
    new_slots = new[0].masked_fill(torch.rand(4, 4) < 0.5, -1)
    out = untouched(4, 512, "cuda")

    def call() -> None:
        refine_logits_triton(*pool, *held[:3], 128, layout, out, host)

    replay(call, [*held, out], [new_slots, new[1], new_pos, new_seq, untouched(4, 512)])

    again = untouched(4, 512, "cuda")
    refine_logits_triton(*pool, *on("cuda", new_slots, new[1], new_pos), 128, layout, again, host)
    assert_bits_equal(out, again)
    assert_allocates_nothing(call)
