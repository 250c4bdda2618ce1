import pytest
import torch

from accuracy import assert_bits_equal
from cases import PagedKeys, on, paged_keys, queries, queries_of
from hisparse_kernels.gpu import route_heads as launcher
from hisparse_kernels.gpu.route_heads import route_heads_triton
from hisparse_kernels.layouts import index_layout
from hisparse_kernels.pooled_rows import PooledRows
from hisparse_kernels.route_heads import (
    route_heads,
    route_heads_ref,
    route_workspace_size,
)
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay
from tests.kernels.gpu.pooling import apart

F8, BF16, F32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
SEQ = (0, 1, -1, 2, 3, 3, 3, 1, 0)
COMPLETE = (1, 7, 70, 8, 9, 0, 130, 5, 0)  # what a padding row says is not looked at
NEAR_TIE = 1e-5  # energies that fp32 sums in another order may swap


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def has_near_tie(
    stored: PagedKeys, index_q: torch.Tensor, weights: torch.Tensor, row: int, num_routed: int
) -> bool:
    """Whether the last routed head of a row and the next one are nearly equal."""
    keys = stored.keys[SEQ[row]][: COMPLETE[row]].double()
    means = [group.mean(0) for group in keys.split(8) if len(group)]
    if not means or num_routed == weights.shape[1]:
        return False
    dots = index_q[row].double() @ torch.stack(means).T
    energy = (dots.relu().sum(1) * weights[row].double().abs()).sort(descending=True).values
    gap = energy[num_routed - 1] - energy[num_routed]
    return 0 < float(gap) < NEAR_TIE * float(energy[0])


@pytest.mark.parametrize(
    ("layout", "dtype", "heads", "num_routed"),
    [
        ("fp8", F8, 1, 1),
        ("fp8", F8, 5, 5),
        ("fp8", F8, 64, 8),
        ("fp8", BF16, 40, 7),
        ("fp8", F32, 40, 7),
        ("fp32", F8, 40, 7),
        ("fp32", BF16, 32, 8),
        ("fp32", F32, 40, 39),
    ],
)
def test_routed_heads_are_the_references(
    layout: str,
    dtype: torch.dtype,
    heads: int,
    num_routed: int,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if heads == 40:  # rows of several sequences in one program
        monkeypatch.setattr(launcher, "_PROGRAMS", 1)
    rows = index_layout(layout)
    stored = paged_keys((1, 7, 8, 130), rows)  # all else in the pool is NaN
    index_q, weights = queries_of(dtype, len(SEQ), heads)
    out = torch.full((len(SEQ), num_routed), 12345, dtype=torch.int32, device=device)
    inputs = index_q, weights, stored.index_pages, stored.page_table, int32(*SEQ), int32(*COMPLETE)

    assert route_heads_triton(*on(device, *inputs), num_routed, rows, out=out) is out

    expected = route_heads_ref(*inputs, num_routed, rows)
    sure = [
        row
        for row, seq in enumerate(SEQ)
        if seq < 0 or not has_near_tie(stored, index_q, weights, row, num_routed)
    ]
    assert len(sure) >= len(SEQ) - 1
    assert_bits_equal(out.cpu()[sure], expected[sure])


def test_heads_that_tie_are_taken_from_the_lowest(device: str) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((300,), layout)
    index_q, weights = queries(1, 1)
    index_q = index_q.repeat(3, 24, 1)
    weights = weights.repeat(3, 24)
    weights[1, [3, 17, 20]] *= -2.0  # the sign of a weight does not count
    weights[2] = 0.0
    inputs = index_q, weights, stored.index_pages, stored.page_table, int32(0, 0, 0)

    found = route_heads_triton(*on(device, *inputs, int32(300, 300, 300)), 5, layout)

    assert found.tolist() == [[0, 1, 2, 3, 4], [0, 1, 3, 17, 20], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("group_blocks", [1, 3, 64])
def test_groups_of_other_sizes_give_the_references_heads(group_blocks: int, device: str) -> None:
    layout = index_layout("fp32")
    stored = paged_keys((200,), layout)
    index_q, weights = queries(4, 16)
    inputs = index_q, weights, stored.index_pages, stored.page_table
    rows = int32(0, 0, 0, 0), int32(200, 3, 64, 65)

    found = route_heads_triton(*on(device, *inputs, *rows), 4, layout, group_blocks)

    assert_bits_equal(found.cpu(), route_heads_ref(*inputs, *rows, 4, layout, group_blocks))


@pytest.mark.parametrize(("layout", "dtype"), [("fp8", F8), ("fp8", F32), ("fp32", BF16)])
def test_pooled_keys_that_lie_apart_route_alike(
    layout: str, dtype: torch.dtype, device: str
) -> None:
    rows = index_layout(layout)
    stored = paged_keys((1, 7, 8, 130), rows)
    query = queries_of(dtype, len(SEQ), 40)
    pages, table = apart(stored.index_pages, stored.page_table, rows)
    inputs = *query, stored.index_pages, stored.page_table, int32(*SEQ), int32(*COMPLETE)

    moved = PooledRows(table.rows.to(device))
    args = *on(device, *query, pages), moved, *on(device, *inputs[4:])
    found = route_heads_triton(*args, 7, rows)

    assert_bits_equal(found, route_heads_triton(*on(device, *inputs), 7, rows))
    alone = route_heads(*query, pages, table, *inputs[4:], 7, rows)
    assert_bits_equal(alone, route_heads_ref(*inputs, 7, rows))


def test_a_row_routes_alone_as_it_does_beside_others(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_PROGRAMS", 1)  # for each chunk one, with 64 rows
    layout, rows = index_layout("fp8"), 150
    stored = paged_keys((700, 30), layout)  # 87 full groups and a half: three chunks
    index_q, weights = queries_of(F8, rows, 24)
    index_q = index_q.float()
    index_q[:, 1::2] = index_q[:, ::2]
    weights = torch.ones_like(weights)
    weights[:, 1::2] += 2**-23  # the least difference: a changed bit would show
    row_seq = torch.where(torch.arange(rows) % 50 < 40, 0, torch.arange(rows) % 3 - 1).int()
    complete = torch.where(row_seq == 0, 700 - torch.arange(rows) * 4, 30).int()
    query = on(device, index_q.to(F8), weights)
    pool = on(device, stored.index_pages, stored.page_table)
    together = route_heads_triton(*query, *pool, *on(device, row_seq, complete), 5, layout)

    for row in (0, 1, 39, 41, 64, 149):
        one = [tensor[row : row + 1] for tensor in (*query, *on(device, row_seq, complete))]
        alone = route_heads_triton(*one[:2], *pool, *one[2:], 5, layout)
        assert_bits_equal(together[row : row + 1].cpu(), alone.cpu())


def test_what_the_workspace_held_does_not_count(device: str) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((600, 9), layout)
    inputs = *queries_of(F8, 3, 16), stored.index_pages, stored.page_table
    args = on(device, *inputs, int32(0, 1, -1), int32(600, 9, 600))
    size = route_workspace_size(3, 16, stored.page_table.shape[1])
    workspace = torch.full((size + 5,), torch.nan, device=device)

    found = route_heads_triton(*args, 4, layout, workspace=workspace)

    assert_bits_equal(found.cpu(), route_heads_triton(*args, 4, layout).cpu())
    assert bool(workspace[size:].isnan().all())


def test_no_rows_route_nothing(device: str) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((64,), layout)
    inputs = *queries(0, 8), stored.index_pages, stored.page_table, int32(), int32()

    assert route_heads_triton(*on(device, *inputs), 3, layout).shape == (0, 3)


@pytest.mark.gpu
def test_production_rows_route_as_the_reference_twenty_times() -> None:
    layout, rows = index_layout("fp8"), 128
    stored = paged_keys((1024, 8192), layout)
    index_q, weights = queries_of(F8, rows, 64)
    row_seq = (torch.arange(rows) % 2).int()
    complete = torch.where(row_seq == 0, 1024 - torch.arange(rows), 8192 - torch.arange(rows)).int()
    inputs = index_q, weights, stored.index_pages, stored.page_table, row_seq, complete
    args = on("cuda", *inputs)

    found = route_heads_triton(*args, 8, layout)

    # a row with a near-tie may have another last head
    wrong = (found.cpu() != route_heads_ref(*inputs, 8, layout)).any(1)
    assert int(wrong.sum()) <= 1, f"{int(wrong.sum())} of {rows} rows differ"
    for _ in range(19):
        assert torch.equal(route_heads_triton(*args, 8, layout), found)


@pytest.mark.gpu
def test_a_pool_past_two_to_the_31_bytes_is_addressed() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((64,), layout)
    num_pages = 2**31 // layout.page_bytes + 9
    pages = torch.full((num_pages, layout.page_bytes), 0xFF, dtype=torch.uint8, device="cuda")
    pages[-1] = stored.index_pages[stored.page_table[0, 0]].cuda()
    index_q, weights = queries(1, 32)
    far = on("cuda", index_q, weights, int32(num_pages - 1)[None], int32(0), int32(64))

    found = route_heads_triton(far[0], far[1], pages, *far[2:], 8, layout)

    inputs = index_q, weights, stored.index_pages, stored.page_table, int32(0), int32(64)
    assert_bits_equal(found.cpu(), route_heads_ref(*inputs, 8, layout))


@pytest.mark.gpu
def test_a_graph_follows_new_lengths_and_allocates_nothing() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((700, 300), layout)
    pool = on("cuda", *queries_of(F8, 4, 64), stored.index_pages, stored.page_table)
    row_seq, complete = int32(0, -1, -1, -1).cuda(), int32(3, 0, 0, 0).cuda()
    out = torch.full((4, 8), 12345, dtype=torch.int32, device="cuda")
    size = route_workspace_size(4, 64, stored.page_table.shape[1])
    workspace = torch.full((size,), torch.nan, device="cuda")
    changed = int32(1, 0, -1, 0), int32(300, 699, 5, 64)

    def call() -> None:
        route_heads_triton(*pool, row_seq, complete, 8, layout, out=out, workspace=workspace)

    replay(call, (row_seq, complete), changed)

    expected = route_heads_triton(*pool, *on("cuda", *changed), 8, layout)
    assert_bits_equal(out, expected)
    assert_allocates_nothing(call)
