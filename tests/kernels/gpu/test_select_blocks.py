"""`select_blocks`: the chain of the two ops that it stands for, in one launch or two."""

import pytest
import torch

from accuracy import assert_bits_equal
from cases import on, paged_keys, queries_of
from hisparse_kernels.gpu.block_topm import block_topm_triton
from hisparse_kernels.gpu.index_logits import paged_index_logits_triton
from hisparse_kernels.gpu.select_blocks import select_blocks_triton
from hisparse_kernels.layouts import IndexLayout, index_layout
from hisparse_kernels.pooled_rows import PooledRows
from hisparse_kernels.select_blocks import BlockScratch, select_blocks, select_blocks_ref
from hisparse_kernels.window_slots import WindowSlots
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay
from tests.kernels.gpu.pooling import apart
from tests.kernels.gpu.refining import F8, F32, PATHS, int32

BLOCKS = (1, 63, 192, 700)  # pooled keys of each sequence
ROW_SEQ = int32(0, 1, 2, 3, -1, 3)
NEWEST = int32(0, 40, 191, 650, -1, 699)
Inputs = tuple[torch.Tensor, ...]


def scratch_of(inputs: Inputs) -> BlockScratch:
    rows, columns = len(inputs[4]), inputs[3].shape[1] * 64
    device = inputs[4].device
    logits = torch.full((rows, columns), torch.nan, device=device)
    return BlockScratch(logits, torch.zeros(rows, dtype=torch.int32, device=device))


def chain(inputs: Inputs, kept: int, layout: IndexLayout) -> torch.Tensor:
    *keys, newest = inputs
    logits = paged_index_logits_triton(*keys, newest.clamp(min=0), layout)
    return block_topm_triton(logits, newest, kept)


def selected(inputs: Inputs, kept: int, layout: IndexLayout) -> torch.Tensor:
    scratch = scratch_of(inputs)
    found = select_blocks_triton(*inputs, kept, layout, scratch)
    assert not scratch.arrivals.any()
    assert not scratch.logits.isnan().any()
    return found


@PATHS
@pytest.mark.parametrize("kept", [2, 64])
def test_blocks_are_those_of_the_chain(
    layout: str, dtype: torch.dtype, block_tokens: int, heads: int, kept: int, device: str
) -> None:
    rows = index_layout(layout)
    pooled = paged_keys(BLOCKS, rows)
    keys = *queries_of(dtype, len(ROW_SEQ), heads), pooled.index_pages, pooled.page_table
    inputs = tuple(on(device, *keys, ROW_SEQ, NEWEST))

    assert_bits_equal(selected(inputs, kept, rows), chain(inputs, kept, rows))


def test_blocks_are_the_references_where_scores_are_exact(device: str) -> None:
    layout = index_layout("fp32")
    pooled = paged_keys(BLOCKS, layout, signs_only=True)
    index_q, weights = queries_of(F32, len(ROW_SEQ), 8)
    keys = index_q.round(), weights.sign(), pooled.index_pages, pooled.page_table
    inputs = *keys, ROW_SEQ, NEWEST
    expected = select_blocks_ref(*inputs, 64, layout, scratch_of(inputs))

    found = selected(tuple(on(device, *inputs)), 64, layout)

    assert_bits_equal(found.cpu(), expected)


def window_slots(kept: int, kind: torch.dtype, device: str) -> WindowSlots:
    """Every third block of each sequence is in the window; sequences lie there in another order."""
    blocks = max(BLOCKS)
    table = torch.randperm(4 * blocks).to(kind)
    table[::3] = -1
    base, slot_base = torch.tensor([2, 0, 3, 1]) * blocks, torch.tensor([70000, 5, 0, 900])
    out = torch.full((len(ROW_SEQ), kept), 12345, dtype=torch.int32)
    return WindowSlots(*on(device, table, base, slot_base, out))


@pytest.mark.parametrize("kind", [torch.int16, torch.int32])
@pytest.mark.parametrize("kept", [3, 64])
def test_slots_of_the_blocks_are_looked_up(kept: int, kind: torch.dtype, device: str) -> None:
    layout = index_layout("fp32")
    pooled = paged_keys(BLOCKS, layout, signs_only=True)
    index_q, weights = queries_of(F32, len(ROW_SEQ), 8)
    keys = index_q.round(), weights.sign(), pooled.index_pages, pooled.page_table
    inputs = *keys, ROW_SEQ, NEWEST
    torch.manual_seed(3)
    expected = window_slots(kept, kind, "cpu")
    torch.manual_seed(3)
    found = window_slots(kept, kind, device)

    select_blocks_ref(*inputs, kept, layout, scratch_of(inputs), slots=expected)
    on_device = tuple(on(device, *inputs))
    select_blocks_triton(*on_device, kept, layout, scratch_of(on_device), slots=found)

    assert int((expected.out >= 0).sum()) > 5
    assert_bits_equal(found.out.cpu(), expected.out)


@PATHS
@pytest.mark.parametrize("kept", [2, 64])
def test_pooled_keys_that_lie_apart_give_the_same_blocks(
    layout: str, dtype: torch.dtype, block_tokens: int, heads: int, kept: int, device: str
) -> None:
    rows = index_layout(layout)
    pooled = paged_keys(BLOCKS, rows)
    query = queries_of(dtype, len(ROW_SEQ), heads)
    inputs = tuple(on(device, *query, pooled.index_pages, pooled.page_table, ROW_SEQ, NEWEST))
    pages, table = apart(pooled.index_pages, pooled.page_table, rows)
    moved = PooledRows(table.rows.to(device))
    scratch = scratch_of(inputs)

    found = select_blocks_triton(
        *inputs[:2], pages.to(device), moved, *inputs[4:], kept, rows, scratch
    )

    assert_bits_equal(found, selected(inputs, kept, rows))
    assert not scratch.logits.isnan().any()


def test_the_references_blocks_of_keys_apart_are_those_of_pages() -> None:
    layout = index_layout("fp8")
    pooled = paged_keys(BLOCKS, layout)
    query = queries_of(F8, len(ROW_SEQ), 8)
    inputs = *query, pooled.index_pages, pooled.page_table, ROW_SEQ, NEWEST
    pages, table = apart(pooled.index_pages, pooled.page_table, layout)

    found = select_blocks(*query, pages, table, ROW_SEQ, NEWEST, 64, layout, scratch_of(inputs))

    expected = select_blocks_ref(*inputs, 64, layout, scratch_of(inputs))
    assert_bits_equal(found, expected)


def test_a_table_of_rows_of_another_width_is_refused() -> None:
    layout = index_layout("fp8")
    pooled = paged_keys(BLOCKS, layout)
    table = PooledRows(torch.zeros(len(BLOCKS), 65, dtype=torch.int32))
    inputs = *queries_of(F8, 1, 8), pooled.index_pages, table, int32(0), int32(3)
    scratch = BlockScratch(torch.zeros(1, 64), int32(0))

    with pytest.raises(ValueError, match="65 columns, needs a multiple of 64"):
        select_blocks(*inputs, 2, layout, scratch)


def test_without_pooled_pages_only_padding_is_left(device: str) -> None:
    layout = index_layout("fp8")
    table = torch.empty(1, 0, dtype=torch.int32)
    pages = paged_keys((1,), layout).index_pages
    inputs = *queries_of(F8, 2, 32), pages, table, int32(-1, -1), int32(-1, -1)

    found = selected(tuple(on(device, *inputs)), 3, layout)

    assert_bits_equal(found.cpu(), torch.full((2, 3), -1).int())


def production(rows: int, blocks: int) -> Inputs:
    torch.manual_seed(0)
    pooled = paged_keys((blocks,) * min(rows, 8), index_layout("fp8"))
    seq = (torch.arange(rows) % 8).int()
    newest = torch.randint(blocks // 2, blocks, (rows,)).int()
    keys = *queries_of(F8, rows, 64), pooled.index_pages, pooled.page_table
    return tuple(on("cuda", *keys, seq, newest))


@pytest.mark.gpu
@pytest.mark.parametrize("blocks", [512, 1024, 8192])
@pytest.mark.parametrize("rows", [1, 8, 64, 1024])
def test_production_sizes_give_the_chains_blocks_twenty_times(rows: int, blocks: int) -> None:
    layout, inputs = index_layout("fp8"), production(rows, blocks)
    expected = chain(inputs, 64, layout)
    scratch = scratch_of(inputs)

    for _ in range(20):
        assert torch.equal(select_blocks_triton(*inputs, 64, layout, scratch), expected)
        assert not scratch.arrivals.any()


@pytest.mark.gpu
def test_a_graph_follows_new_rows_and_allocates_nothing() -> None:
    layout, inputs = index_layout("fp8"), production(4, 1024)
    new = *production(4, 1024)[:4], int32(2, -1, 0, 1).cuda(), int32(900, -1, 5, 64).cuda()
    held = tuple(tensor.clone() for tensor in inputs)
    scratch, out = scratch_of(inputs), torch.full((4, 64), 7, dtype=torch.int32, device="cuda")

    def call() -> None:
        select_blocks_triton(*held, 64, layout, scratch, out)

    replay(call, held, new)

    assert_bits_equal(out, chain(new, 64, layout))
    assert_allocates_nothing(call)
