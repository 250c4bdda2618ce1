import pytest
import torch

from accuracy import TOLERANCES, assert_bits_equal, assert_near_largest
from cases import on, paged_keys, queries_of
from hisparse_kernels.gpu.refine_logits import refine_logits_triton
from hisparse_kernels.gpu.score_positions import score_positions_triton
from hisparse_kernels.layouts import INDEX_LAYOUTS, IndexLayout, index_layout
from hisparse_kernels.score_positions import score_positions_ref
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay

F8, BF16, F32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
LAYOUTS = pytest.mark.parametrize("layout", INDEX_LAYOUTS.values(), ids=INDEX_LAYOUTS.keys())
DTYPES = pytest.mark.parametrize("dtype", [F8, BF16, F32], ids=["e4m3", "bf16", "fp32"])


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def drawn(lengths: list[int], count: int, *, valid: list[int]) -> torch.Tensor:
    """[rows, count] positions below each row's length; beyond `valid` of them all are -1."""
    torch.manual_seed(5)
    positions = torch.stack([torch.randint(0, length, (count,)) for length in lengths]).int()
    positions[:, ::7] = -1
    return torch.where(torch.arange(count) < torch.tensor(valid)[:, None], positions, -1)


@LAYOUTS
@DTYPES
@pytest.mark.parametrize(("heads", "count"), [(1, 1), (40, 129), (64, 300)])
def test_scores_of_positions_match_the_reference(
    layout: IndexLayout, dtype: torch.dtype, heads: int, count: int, device: str
) -> None:
    stored = paged_keys((300, 65, 1), layout)  # all else in the pool is NaN
    row_seq = int32(0, 1, -1, 2, 0)
    positions = drawn([300, 65, 300, 1, 300], count, valid=[count, count, count, 130, 0])
    index_q, weights = queries_of(dtype, 5, heads)
    inputs = index_q, weights, stored.index_pages, stored.page_table, row_seq, positions
    out = torch.full((5, count), torch.nan, device=device)

    assert score_positions_triton(*on(device, *inputs), layout, out=out) is out

    assert_near_largest(out.cpu(), score_positions_ref(*inputs, layout), TOLERANCES[dtype])


def test_positions_in_no_page_are_minus_inf(device: str) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((70, 300), layout)
    positions = int32(128, 191, 319, 320, 2**31 - 1, 69)[None]
    table = stored.page_table.clone()
    table[0, 2], table[0, 4] = len(stored.index_pages), 2**31 - 1
    inputs = *queries_of(F8, 1, 8), stored.index_pages, table, int32(0), positions

    logits = score_positions_triton(*on(device, *inputs), layout).cpu()

    assert logits.isfinite().tolist() == [[False] * 5 + [True]]
    assert bool((logits[0, :5] == -torch.inf).all())
    assert_near_largest(logits, score_positions_ref(*inputs, layout), TOLERANCES[F8])


@LAYOUTS
@DTYPES
@pytest.mark.parametrize("heads", [8, 64])
def test_a_token_has_the_bits_that_its_block_gives_it(
    layout: IndexLayout, dtype: torch.dtype, heads: int, device: str
) -> None:
    stored = paged_keys((640,), layout, block_tokens=128, signs_only=True)
    index_q, weights = queries_of(dtype, 3, heads)
    if device == "cpu":  # whose BLAS sums a dot by where it stands: whole numbers are exact
        index_q = index_q.float().round().to(dtype)
    slots = (stored.page_table[0, ::2] // 2).expand(3, -1).contiguous()
    blocks = torch.arange(5).int().expand(3, -1).contiguous()
    positions = torch.stack([torch.randperm(640)[:200] for _ in range(3)]).int()
    query, pages = on(device, index_q, weights), stored.index_pages.to(device)
    refined = torch.full((3, 640), torch.nan, device=device)
    where = on(device, slots, blocks, int32(639, 639, 639))
    refine_logits_triton(*query, pages, *where, 128, layout, refined)

    picked = on(device, stored.page_table, int32(0, 0, 0), positions)
    logits = score_positions_triton(*query, pages, *picked, layout)

    assert_bits_equal(logits.cpu(), refined.cpu().gather(1, positions.long()))


@pytest.mark.parametrize(("rows", "count"), [(0, 5), (2, 0)])
def test_nothing_to_score_gives_no_logits(rows: int, count: int, device: str) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((70,), layout)
    none = torch.zeros(rows).int(), torch.zeros(rows, count).int()
    inputs = *queries_of(F8, rows, 4), stored.index_pages, stored.page_table, *none

    assert score_positions_triton(*on(device, *inputs), layout).shape == (rows, count)


@pytest.mark.gpu
def test_production_rows_match_the_reference_twenty_times() -> None:
    layout, length = index_layout("fp8"), 65536
    stored = paged_keys((length,), layout)
    index_q, weights = queries_of(F8, 256, 64)
    positions = drawn([length] * 256, 8192, valid=[8192] * 255 + [100])
    inputs = index_q, weights, stored.index_pages, stored.page_table
    row_seq = torch.zeros(256).int()
    args = on("cuda", *inputs, row_seq, positions)

    logits = score_positions_triton(*args, layout)

    some = torch.tensor([0, 17, 255])
    pool = stored.index_pages, stored.page_table
    expected = score_positions_ref(
        index_q[some], weights[some], *pool, row_seq[some], positions[some], layout
    )
    assert_near_largest(logits[some.cuda()].cpu(), expected, TOLERANCES[F8])
    for _ in range(19):
        assert torch.equal(score_positions_triton(*args, layout), logits)


@pytest.mark.gpu
def test_a_pool_past_two_to_the_31_bytes_is_addressed() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((64,), layout)
    num_pages = 2**31 // layout.page_bytes + 9
    pages = torch.full((num_pages, layout.page_bytes), 0xFF, dtype=torch.uint8, device="cuda")
    pages[-1] = stored.index_pages[stored.page_table[0, 0]].cuda()
    query, positions = queries_of(F8, 1, 32), torch.arange(64).int()[None]
    far = on("cuda", int32(num_pages - 1)[None], int32(0), positions)

    logits = score_positions_triton(*on("cuda", *query), pages, *far, layout)

    near = stored.index_pages, stored.page_table, int32(0), positions
    expected = score_positions_ref(*query, *near, layout)
    assert_near_largest(logits.cpu(), expected, TOLERANCES[F8])


@pytest.mark.gpu
def test_a_graph_follows_new_positions_and_allocates_nothing() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((700, 300), layout)
    pool = on("cuda", *queries_of(F8, 2, 64), stored.index_pages, stored.page_table)
    row_seq, positions = int32(0, -1).cuda(), torch.full((2, 200), -1).int().cuda()
    out = torch.full((2, 200), torch.nan, device="cuda")
    changed = int32(1, 0), drawn([300, 700], 200, valid=[200, 150])

    def call() -> None:
        score_positions_triton(*pool, row_seq, positions, layout, out=out)

    replay(call, (row_seq, positions), changed)

    assert_bits_equal(out, score_positions_triton(*pool, *on("cuda", *changed), layout))
    assert_allocates_nothing(call)
