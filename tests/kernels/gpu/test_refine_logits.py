import pytest
import torch

from accuracy import TOLERANCES, assert_bits_equal, assert_near_largest
from cases import NAN_BYTE, on, paged_keys, queries, queries_of
from hisparse_kernels.gpu.index_logits import paged_index_logits_triton
from hisparse_kernels.gpu.refine_logits import refine_logits_triton
from hisparse_kernels.layouts import PAGE_TOKENS, index_layout
from hisparse_kernels.refine_logits import refine_logits_ref
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay
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


@PATHS
def test_logits_are_the_references_and_other_columns_stay(
    layout: str, dtype: torch.dtype, block_tokens: int, heads: int, device: str
) -> None:
    rows = index_layout(layout)
    stored = paged_keys(LENGTHS, rows, block_tokens=block_tokens)  # all else in the pool is NaN
    row_seq = int32(3, 3, 2, 1, 0, -1, 3)
    row_pos = int32(699, 300, 191, 40, 0, -1, 0)
    slots, ids = chosen_blocks(stored, row_seq, 4, block_tokens)
    slots[0, 1] = -1  # a block that is not there
    slots[5], ids[5] = slots[0], ids[0]  # a padding row sees nothing of what it names
    ids[1], slots[1] = ids[1].flip(0), slots[1].flip(0)
    index_q, weights = queries_of(dtype, len(row_seq), heads)
    inputs = index_q, weights, stored.index_pages, slots, ids, row_pos
    expected = untouched(len(row_seq), 4 * block_tokens)
    refine_logits_ref(*inputs, block_tokens, rows, expected)

    found = refined(inputs, block_tokens, rows, device)

    assert_bits_equal((found == UNTOUCHED), (expected == UNTOUCHED))
    assert_near_largest(
        found.masked_fill(found == UNTOUCHED, 0.0),
        expected.masked_fill(expected == UNTOUCHED, 0.0),
        TOLERANCES[dtype],
    )


@PATHS
def test_a_row_and_a_key_have_the_bits_of_the_paged_logits(
    layout: str, dtype: torch.dtype, block_tokens: int, heads: int, device: str
) -> None:
    rows = index_layout(layout)
    stored = paged_keys(LENGTHS, rows, block_tokens=block_tokens)
    row_seq, row_pos = int32(3, 2, 3, 3), int32(699, 191, 100, 64)
    slots, ids = chosen_blocks(stored, row_seq, 4, block_tokens)
    query = queries_of(dtype, 4, heads)
    found = refined((*query, stored.index_pages, slots, ids, row_pos), block_tokens, rows, device)

    inputs = on(device, *query, stored.index_pages, stored.page_table, row_seq, row_pos + 1)
    flat = paged_index_logits_triton(*inputs, rows).cpu()
    column = (ids[:, :, None].clamp(min=0) * block_tokens + torch.arange(block_tokens)).flatten(1)
    flat = flat.gather(1, column.long()).masked_fill(found == UNTOUCHED, UNTOUCHED)
    if device == "cuda":
        assert_bits_equal(found, flat)
    else:  # BLAS sums a dot by where it stands in its tile
        assert_near_largest(found[found != UNTOUCHED], flat[flat != UNTOUCHED], TOLERANCES[F32])


@pytest.mark.parametrize("tiles_of_one", [3, 100])
def test_programs_of_any_number_of_tiles_give_the_same_bits(
    tiles_of_one: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, m = index_layout("fp8"), 140  # more than a program looks at together
    stored = paged_keys((m * PAGE_TOKENS,), layout)
    row_pos = int32(m * PAGE_TOKENS - 1, 3000)
    slots, ids = chosen_blocks(stored, int32(0, 0), m, 64)
    ids[0], slots[0] = torch.arange(m).int(), stored.page_table[0]
    slots[0, :30], slots[0, 50:53], slots[0, 120:] = -1, -1, -1  # as a stream holds them
    slots[1, ::9] = -1
    inputs = *queries_of(F8, 2, 4), stored.index_pages, slots, ids, row_pos
    alone = refined(inputs, 64, layout, device)

    monkeypatch.setattr(
        "hisparse_kernels.gpu.refine_logits.tiles_per_program", lambda *_: tiles_of_one
    )
    together = refined(inputs, 64, layout, device)

    assert_bits_equal(together, alone)
    expected = untouched(2, m * 64)
    refine_logits_ref(*inputs, 64, layout, expected)
    assert_bits_equal(together == UNTOUCHED, expected == UNTOUCHED)
    assert_bits_equal(together == -torch.inf, expected == -torch.inf)


@pytest.mark.parametrize(("rows", "m"), [(0, 3), (2, 0)])
def test_nothing_to_refine_leaves_nothing(rows: int, m: int, device: str) -> None:
    layout = index_layout("fp8")
    none = torch.full((rows, m), -1).int()
    inputs = *queries(rows, 4), torch.zeros(2, layout.page_bytes).byte(), none, none

    out = refined((*inputs, torch.zeros(rows).int()), 128, layout, device)

    assert out.shape == (rows, m * 128)


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "heads"), [(1, 64), (8, 32), (128, 64), (4096, 64)])
def test_production_rows_have_the_bits_of_the_paged_logits_twenty_times(
    rows: int, heads: int
) -> None:
    layout, length = index_layout("fp8"), 16384
    stored = paged_keys((length,), layout, block_tokens=128)
    row_seq = torch.zeros(rows).int()
    row_pos = length - 1 - torch.arange(rows).int()
    slots, ids = chosen_blocks(stored, row_seq, 64, 128)
    index_q, weights = on("cuda", *queries_of(F8, rows, heads))
    pool, table = on("cuda", stored.index_pages, stored.page_table)
    held = on("cuda", slots, ids, row_pos)
    out = untouched(rows, 64 * 128, "cuda")

    refine_logits_triton(index_q, weights, pool, *held, 128, layout, out)

    some = torch.arange(0, rows, max(1, rows // 16), device="cuda")
    flat = paged_index_logits_triton(
        index_q[some], weights[some], pool, table, row_seq.cuda()[some], held[2][some] + 1, layout
    )
    column = (held[1][some][:, :, None] * 128 + torch.arange(128, device="cuda")).flatten(1)
    assert_bits_equal(out[some], flat.gather(1, column.long()))
    again = torch.empty_like(out)
    for _ in range(19):
        again.fill_(UNTOUCHED)
        refine_logits_triton(index_q, weights, pool, *held, 128, layout, again)
        assert torch.equal(again, out)


@pytest.mark.gpu
def test_a_window_past_two_to_the_31_bytes_is_addressed() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((128,), layout, block_tokens=128)
    num_slots = 2**31 // (2 * layout.page_bytes) + 5
    pages = torch.full((num_slots * 2, layout.page_bytes), NAN_BYTE, dtype=torch.uint8).cuda()
    pages[-2:] = stored.index_pages[stored.page_table[0].long()].cuda()
    query = on("cuda", *queries_of(F8, 1, 64))
    block, pos = on("cuda", int32(0)[None], int32(100))
    near = torch.cat([pages[-2:], pages[:2]])

    far_out = untouched(1, 128, "cuda")
    refine_logits_triton(
        *query, pages, int32(num_slots - 1)[None].cuda(), block, pos, 128, layout, far_out
    )
    near_out = untouched(1, 128, "cuda")
    refine_logits_triton(*query, near, block, block, pos, 128, layout, near_out)

    assert_bits_equal(far_out, near_out)
    assert bool(far_out[0, :101].isfinite().all())


@pytest.mark.gpu
def test_a_graph_follows_new_slots_blocks_and_positions_and_allocates_nothing() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((900, 300), layout, block_tokens=128)
    old = *chosen_blocks(stored, int32(0, -1, -1, 1), 4, 128), int32(40, -1, -1, 299)
    new = *chosen_blocks(stored, int32(1, 0, -1, 0), 4, 128), int32(299, 899, -1, 128)
    new[0][1, 2] = -1
    pool = *queries_of(F8, 4, 64), stored.index_pages
    on_gpu, held, out = on("cuda", *pool), on("cuda", *old), untouched(4, 512, "cuda")

    def call() -> None:
        refine_logits_triton(*on_gpu, *held, 128, layout, out)

    replay(call, [*held, out], [*new, untouched(4, 512)])

    assert_bits_equal(out.cpu(), refined((*pool, *new), 128, layout, "cuda"))
    assert_allocates_nothing(call)
