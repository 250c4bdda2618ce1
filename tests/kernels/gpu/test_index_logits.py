import pytest
import torch

from accuracy import TOLERANCES, assert_bits_equal, assert_near_largest
from cases import PAGE_EDGES, naive_scores, on, paged_keys, queries_of
from hisparse_kernels.gpu.index_logits import index_logits_triton, paged_index_logits_triton
from hisparse_kernels.index_logits import SlotPages, index_logits_ref, paged_index_logits_ref
from hisparse_kernels.index_rows import pack_index_rows, unpack_index_rows
from hisparse_kernels.layouts import INDEX_LAYOUTS, IndexLayout, index_layout
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay

F8, BF16, F32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
LAYOUTS = pytest.mark.parametrize("layout", INDEX_LAYOUTS.values(), ids=INDEX_LAYOUTS.keys())
DTYPES = pytest.mark.parametrize("dtype", [F8, BF16, F32], ids=["e4m3", "bf16", "fp32"])
GPU = pytest.mark.gpu


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def poisoned(rows: int, columns: int, device: str) -> torch.Tensor:
    return torch.full((rows, columns), torch.nan, device=device)


def assert_same_logits(found: torch.Tensor, expected: torch.Tensor, device: str) -> None:
    """Bit for bit; near in the interpreter, whose BLAS sums rows at a tile's edge otherwise."""
    if device == "cuda":
        assert_bits_equal(found, expected)
    else:
        assert_near_largest(found, expected, TOLERANCES[F32])


@LAYOUTS
@DTYPES
@pytest.mark.parametrize(("num_keys", "heads"), [(1, 1), (129, 5), (300, 40), (256, 64)])
def test_ragged_logits_match_the_reference_and_the_formula(
    layout: IndexLayout, dtype: torch.dtype, num_keys: int, heads: int, device: str
) -> None:
    index_q, weights = queries_of(dtype, 6, heads)
    rows = pack_index_rows(torch.randn(num_keys, 128), layout)
    start = int32(0, num_keys - 1, 0, 3, num_keys // 2, 7)
    end = int32(num_keys, num_keys, 0, 2, num_keys, 1 + num_keys // 3)
    out = poisoned(6, num_keys, device)

    args = on(device, index_q, weights, rows, start, end)
    assert index_logits_triton(*args, layout, out=out) is out

    expected = index_logits_ref(index_q, weights, rows, start, end, layout)
    assert_near_largest(out.cpu(), expected, TOLERANCES[dtype])
    scores = naive_scores(index_q.float(), weights, unpack_index_rows(rows, layout)).float()
    assert_near_largest(out.cpu()[0], scores[0], TOLERANCES[dtype])


@LAYOUTS
@DTYPES
@pytest.mark.parametrize("heads", [4, 32])
def test_paged_logits_match_the_reference_at_page_edges(
    layout: IndexLayout, dtype: torch.dtype, heads: int, device: str
) -> None:
    stored = paged_keys(PAGE_EDGES, layout)  # all else in the pool is NaN
    num_rows = len(PAGE_EDGES) + 2
    index_q, weights = queries_of(dtype, num_rows, heads)
    row_seq = torch.cat([torch.arange(len(PAGE_EDGES)).int(), int32(-1, 3)])
    row_end = torch.cat([stored.lengths, int32(70, 0)])
    out = poisoned(num_rows, 320, device)
    inputs = index_q, weights, stored.index_pages, stored.page_table, row_seq, row_end

    assert paged_index_logits_triton(*on(device, *inputs), layout, out=out) is out

    assert_near_largest(out.cpu(), paged_index_logits_ref(*inputs, layout), TOLERANCES[dtype])
    for row, length in enumerate(PAGE_EDGES):
        scores = naive_scores(
            index_q[row : row + 1].float(), weights[row : row + 1], stored.keys[row]
        )
        assert_near_largest(out.cpu()[row, :length], scores[0].float(), TOLERANCES[dtype])


@LAYOUTS
@pytest.mark.parametrize("num_rows", [3, 40], ids=["by_row", "rows_share_tiles"])
def test_keys_of_pages_that_are_not_there_are_minus_inf(
    layout: IndexLayout, num_rows: int, device: str
) -> None:
    stored = paged_keys((300, 129), layout)
    table = stored.page_table.clone()
    table[0, 0], table[0, 2], table[1, 1] = -1, len(stored.index_pages), -9
    index_q, weights = queries_of(BF16, num_rows, 4)  # few heads: rows of a sequence share
    row_seq = (torch.arange(num_rows) * 2 // num_rows).int()
    row_end = torch.where(row_seq == 0, 300, 129).int()
    inputs = index_q, weights, stored.index_pages

    found = paged_index_logits_triton(*on(device, *inputs, table, row_seq, row_end), layout).cpu()

    assert_near_largest(
        found, paged_index_logits_ref(*inputs, table, row_seq, row_end, layout), TOLERANCES[BF16]
    )
    whole = paged_index_logits_triton(
        *on(device, *inputs, stored.page_table, row_seq, row_end), layout
    ).cpu()
    page = torch.arange(found.shape[1]) // 64
    is_lost = torch.where(row_seq[:, None] == 0, (page == 0) | (page == 2), page == 1)
    assert_bits_equal(found, whole.masked_fill(is_lost, -torch.inf))


@pytest.mark.parametrize("pages_per_block", [1, 2])
def test_keys_of_blocks_without_a_slot_are_minus_inf(pages_per_block: int, device: str) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((300, 129), layout, block_tokens=64 * pages_per_block)
    blocks = stored.page_table[:, ::pages_per_block] // pages_per_block
    blocks = blocks.where(stored.page_table[:, ::pages_per_block] >= 0, -1)
    blocks[0, 1] = -1
    bases = torch.tensor([0, blocks.shape[1]]), torch.tensor([0, 0])
    inputs = *queries_of(F8, 2, 40), stored.index_pages
    rows = int32(0, 1), int32(300, 129)
    table = blocks.flatten().to(torch.int16)
    slots = SlotPages(*on(device, table, *bases), blocks.shape[1], pages_per_block)

    found = paged_index_logits_triton(*on(device, *inputs), slots, *on(device, *rows), layout).cpu()

    table = stored.page_table.clone()
    table[0, pages_per_block : 2 * pages_per_block] = -1
    wanted = paged_index_logits_triton(*on(device, *inputs, table, *rows), layout).cpu()
    assert_bits_equal(found, wanted)
    lost = found[0, 64 * pages_per_block : 128 * pages_per_block]
    assert bool((lost == -torch.inf).all())


@LAYOUTS
@DTYPES
@pytest.mark.parametrize("exact", [False, True], ids=["rounded_dots", "exact_dots"])
def test_a_row_and_a_key_have_the_same_bits_packed_alone_and_paged(
    layout: IndexLayout, dtype: torch.dtype, exact: bool, device: str
) -> None:
    lengths = (130, 1, 64)
    stored = paged_keys(lengths, layout, signs_only=exact)
    base, seq = torch.tensor([0, 130, 131]), torch.tensor([0, 0, 0, 1, 2, 2])
    start, end = base[seq].int(), base[seq].int() + int32(130, 64, 7, 1, 64, 33)
    index_q, weights = queries_of(dtype, 6, 32)
    if exact:
        index_q = index_q.float().round().to(dtype)
    packed = index_logits_triton(
        *on(device, index_q, weights, torch.cat(stored.rows), start, end), layout
    ).cpu()
    paged = paged_index_logits_triton(
        *on(device, index_q, weights, stored.index_pages, stored.page_table),
        *on(device, seq.int(), end - start),
        layout,
    ).cpu()

    for row, number in enumerate(seq.tolist()):
        one, first, length = slice(row, row + 1), int(base[number]), lengths[number]
        args = index_q[one], weights[one], stored.rows[number], int32(0), end[one] - first
        alone = index_logits_triton(*on(device, *args), layout).cpu()
        for logits in packed[one, first : first + length], paged[one, :length]:
            if exact or device == "cuda":
                assert_bits_equal(logits, alone)
            else:  # BLAS sums a dot by where it stands in its tile
                assert_near_largest(logits, alone, TOLERANCES[F32])


def test_twenty_runs_are_equal_bit_for_bit(device: str) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((200,), layout)
    args = on(device, *queries_of(F8, 3, 8), stored.rows[0], int32(0, 5, 9), int32(200, 6, 150))
    first = index_logits_triton(*args, layout)

    for _ in range(19):
        assert_bits_equal(index_logits_triton(*args, layout), first)


@pytest.mark.parametrize(("rows", "num_keys"), [(0, 70), (3, 0)])
def test_nothing_to_score_gives_no_logits(rows: int, num_keys: int, device: str) -> None:
    layout = index_layout("fp8")
    index_q, weights = queries_of(F8, rows, 4)
    none = torch.zeros(rows).int()
    keys = torch.zeros(num_keys, 132).byte()
    table = torch.full((1, num_keys // 64), -1).int()
    pages = torch.zeros(0, layout.page_bytes).byte()

    ragged = index_logits_triton(*on(device, index_q, weights, keys, none, none), layout)
    paged = paged_index_logits_triton(
        *on(device, index_q, weights, pages, table, none, none), layout
    )

    assert ragged.shape == (rows, num_keys)
    assert paged.shape == (rows, num_keys // 64 * 64)


@GPU
@pytest.mark.parametrize("heads", [32, 64])
def test_a_prefill_chunk_at_64k_keys_matches_the_reference(heads: int) -> None:
    layout, num_keys = index_layout("fp8"), 65536
    index_q, weights = queries_of(F8, 4096, heads)
    rows = pack_index_rows(torch.randn(num_keys, 128), layout)
    end = torch.arange(num_keys - 4096, num_keys).int() + 1
    start = torch.zeros(4096).int()
    args = on("cuda", index_q, weights, rows, start, end)

    logits = index_logits_triton(*args, layout)

    some = torch.tensor([0, 1, 63, 64, 2047, 4095])
    expected = index_logits_ref(index_q[some], weights[some], rows, start[some], end[some], layout)
    assert_near_largest(logits[some.cuda()].cpu(), expected, TOLERANCES[F8])
    for _ in range(19):
        assert torch.equal(index_logits_triton(*args, layout), logits)


@GPU
def test_decode_logits_of_128_rows_match_the_reference() -> None:
    layout, length = index_layout("fp8"), 16384 + 65
    stored = paged_keys((length, 700), layout)
    index_q, weights = queries_of(F8, 128, 64)
    row_seq = (torch.arange(128) % 3 - 1).int()
    row_end = torch.where(row_seq == 0, length - torch.arange(128), torch.arange(128) + 573).int()
    inputs = index_q, weights, stored.index_pages, stored.page_table, row_seq, row_end

    logits = paged_index_logits_triton(*on("cuda", *inputs), layout)

    assert_near_largest(logits.cpu(), paged_index_logits_ref(*inputs, layout), TOLERANCES[F8])


@GPU
def test_logits_and_pools_beyond_two_to_the_31_are_addressed() -> None:
    layout = index_layout("fp8")
    num_keys, num_rows, num_pages = 2**20, 2**11 + 3, 2**31 // layout.page_bytes + 9
    index_q, weights = queries_of(F8, 1, 16)
    rows = pack_index_rows(torch.randn(1, 128), layout).cuda().expand(num_keys, -1).contiguous()
    one = on("cuda", index_q, weights)
    many = [t.expand(num_rows, *t.shape[1:]).contiguous() for t in one]
    start = torch.full((num_rows,), num_keys - 5).int().cuda()
    end = torch.full((num_rows,), num_keys).int().cuda()
    logits = index_logits_triton(*many, rows, start, end, layout)
    pages = torch.full((num_pages, layout.page_bytes), 0xFF, dtype=torch.uint8, device="cuda")
    stored = paged_keys((64,), layout)
    pages[-1] = stored.index_pages[stored.page_table[0, 0]].cuda()
    table, ends = int32(num_pages - 1)[None].cuda(), int32(64).cuda()
    paged = paged_index_logits_triton(*one, pages, table, int32(0).cuda(), ends, layout)

    assert_bits_equal(logits[-1:, -5:], logits[:1, -5:])
    assert bool(logits[-1, -5:].isfinite().all())
    assert bool((logits[-1, :-5] == -torch.inf).all())
    alone = index_logits_triton(*one, stored.rows[0].cuda(), int32(0).cuda(), ends, layout)
    assert_bits_equal(paged, alone)


@GPU
def test_a_graph_replays_with_other_lengths_and_allocates_nothing() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((700, 300), layout)
    index_q, weights = queries_of(F8, 4, 64)
    pool = on("cuda", index_q, weights, stored.index_pages, stored.page_table)
    row_seq, row_end = int32(0, -1, -1, -1).cuda(), int32(3, 0, 0, 0).cuda()
    out = poisoned(4, stored.page_table.shape[1] * 64, "cuda")
    call = lambda: paged_index_logits_triton(*pool, row_seq, row_end, layout, out=out)  # noqa: E731
    changed = int32(1, 0, -1, 0), int32(300, 699, 5, 64)

    replay(call, (row_seq, row_end), changed)

    expected = paged_index_logits_triton(*pool, *on("cuda", *changed), layout)
    assert_bits_equal(out, expected)
    assert_allocates_nothing(call)


@LAYOUTS
@pytest.mark.parametrize("per_block", [1, 2, 3])
@pytest.mark.parametrize("picked", [None, 3])
def test_slots_of_a_window_score_as_a_page_table_does(
    layout: IndexLayout, per_block: int, picked: int | None, device: str
) -> None:
    """Blocks lie anywhere in the window; the last of a sequence may not be there."""
    torch.manual_seed(0)
    blocks, rows = 5, 20
    order = torch.randperm(2 * blocks + 3).int()
    table = torch.stack([order[:blocks], order[blocks : 2 * blocks]]).flatten()
    base, first = torch.tensor([0, blocks]), torch.tensor([2, 0])
    table[-1] = -1
    window = torch.randint(0, 100, ((len(order) + 2) * per_block, layout.page_bytes)).byte()
    pages = SlotPages(table.short(), base, first, blocks, per_block)
    row_seq, heads = torch.arange(rows).int() % 3 - 1, None
    row_end = torch.where(row_seq == 1, blocks - 1, blocks) * 64 * per_block
    keys = window, pages.page_table(), row_seq, row_end.int()
    queries = queries_of(F32 if layout.name == "fp32" else F8, rows, 8)
    if picked is not None:
        heads = torch.stack([torch.randperm(8)[:picked] for _ in range(rows)]).int().to(device)

    wanted = paged_index_logits_triton(*on(device, *queries, *keys), layout, heads=heads)

    placed = SlotPages(*on(device, table.short(), base, first), blocks, per_block)
    of_window = *on(device, *queries, window), placed, *on(device, row_seq, row_end.int())
    assert_bits_equal(paged_index_logits_triton(*of_window, layout, heads=heads), wanted)
    if device == "cpu":
        assert_bits_equal(
            paged_index_logits_ref(*of_window, layout, heads=heads),
            paged_index_logits_ref(*queries, *keys, layout, heads=heads),
        )
