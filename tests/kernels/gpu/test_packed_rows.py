"""Rows of few heads share a product in `index_logits`, and heads may be picked: the bits stay."""

import pytest
import torch

from accuracy import TOLERANCES, assert_bits_equal, assert_near_largest
from cases import on, paged_keys, queries_of
from hisparse_kernels.gpu import index_logits as launchers
from hisparse_kernels.gpu.index_logits import index_logits_triton, paged_index_logits_triton
from hisparse_kernels.index_logits import index_logits_ref, paged_index_logits_ref
from hisparse_kernels.index_rows import pack_index_rows
from hisparse_kernels.layouts import index_layout
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay

F8, BF16, F32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [F8, BF16], ids=["e4m3", "bf16"])
LENGTHS = (300, 1, 140)


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def whole(index_q: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Small whole numbers, not all 0, of which sums are exact in any order."""
    weights = (weights * 8 / weights.abs().amax()).round()
    return index_q.float().clamp(-3, 3).round().to(index_q.dtype), weights


def head_lists(rows: int, heads: int, count: int) -> torch.Tensor:
    """[rows, count] int32, ascending heads, other ones in each row."""
    torch.manual_seed(3)
    lists = [torch.randperm(heads)[:count].sort().values for _ in range(rows)]
    return torch.stack(lists).int()


def picked(
    index_q: torch.Tensor, weights: torch.Tensor, heads: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of each row's `heads`."""
    wide = heads.long()[:, :, None].expand(-1, -1, 128)
    index_q = index_q.float().gather(1, wide).to(index_q.dtype)
    return index_q, weights.gather(1, heads.long())


@DTYPES
@pytest.mark.parametrize("heads", [1, 5, 8, 9, 16])
@pytest.mark.parametrize("exact", [False, True], ids=["rounded", "exact"])
def test_a_row_scored_beside_others_has_the_bits_it_has_by_itself(
    dtype: torch.dtype, heads: int, exact: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchers, "_PROGRAMS", 1)  # each with all of these few rows
    layout = index_layout("fp8")
    stored = paged_keys(LENGTHS, layout, signs_only=exact)
    base, seq = torch.tensor([0, 300, 301]), torch.arange(37) // 9 % 3
    length = torch.tensor(LENGTHS)[seq]
    start, end = base[seq].int(), (base[seq] + (torch.arange(37) * 41) % (length + 1)).int()
    query = queries_of(dtype, 37, heads)
    query = on(device, *(whole(*query) if exact else query))
    rows = torch.cat(stored.rows)

    packed = index_logits_triton(*query, *on(device, rows, start, end), layout).cpu()

    outside = (torch.arange(441) < start[:, None]) | (torch.arange(441) >= end[:, None])
    assert bool((packed[outside] == -torch.inf).all())
    # of more sequences the table: too few rows of each to share a product
    wide = torch.nn.functional.pad(stored.page_table, (0, 0, 0, 2), value=-1)
    where = seq.int(), end - start
    shared, alone = (
        paged_index_logits_triton(
            *query, *on(device, stored.index_pages, table, *where), layout
        ).cpu()
        for table in (stored.page_table, wide)
    )
    assert bool((shared[torch.arange(320) >= (end - start)[:, None]] == -torch.inf).all())
    for row, number in enumerate(seq.tolist()):
        count, first = int(length[row]), int(base[number])
        for found in packed[row, first : first + count], shared[row, :count]:
            if exact or device == "cuda":
                assert_bits_equal(found, alone[row, :count])
            else:  # BLAS sums a dot by where it stands in its tile
                assert_near_largest(found, alone[row, :count], TOLERANCES[F32])


def test_padding_rows_between_rows_that_share_a_product_are_minus_inf(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchers, "_PROGRAMS", 1)
    layout = index_layout("fp8")
    stored = paged_keys((200,), layout)
    row_seq = torch.where(torch.arange(21) % 5 == 3, -1, 0).int()
    end = (torch.arange(21) * 13 % 201).int()
    inputs = *queries_of(F8, 21, 8), stored.index_pages, stored.page_table, row_seq, end
    out = torch.full((21, 256), torch.nan, device=device)

    paged_index_logits_triton(*on(device, *inputs), layout, out=out)

    assert_near_largest(out.cpu(), paged_index_logits_ref(*inputs, layout), TOLERANCES[F8])
    assert bool((out.cpu()[row_seq < 0] == -torch.inf).all())


@pytest.mark.parametrize(
    ("layout_name", "dtype", "count"),
    [("fp8", F8, 8), ("fp8", BF16, 5), ("fp8", F8, 16), ("fp8", F8, 33), ("fp32", F32, 7)],
)
def test_picked_heads_score_as_a_copy_of_them_does(
    layout_name: str, dtype: torch.dtype, count: int, device: str
) -> None:
    layout = index_layout(layout_name)
    stored = paged_keys((200,), layout)
    index_q, weights = queries_of(dtype, 21, 40)
    heads = head_lists(21, 40, count)
    end = (torch.arange(21) * 13 % 201).int()
    end[:2] = int32(200, 0)
    all_heads, copies = on(device, index_q, weights), on(device, *picked(index_q, weights, heads))
    heads[1] = -1  # of a row that sees nothing
    ragged = on(device, stored.rows[0], torch.zeros(21).int(), end)
    paged = on(device, stored.index_pages, stored.page_table, torch.zeros(21).int(), end)
    for op, twin, where in (
        (index_logits_triton, index_logits_ref, ragged),
        (paged_index_logits_triton, paged_index_logits_ref, paged),
    ):
        found = op(*all_heads, *where, layout, heads=heads.to(device)).cpu()

        assert_bits_equal(found, op(*copies, *where, layout).cpu())
        inputs = index_q, weights, *(tensor.cpu() for tensor in where)
        assert_near_largest(found, twin(*inputs, layout, heads=heads), TOLERANCES[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("count", [8, 16])
def test_a_chunk_at_64k_keys_has_the_bits_of_single_rows(count: int) -> None:
    layout, num_keys = index_layout("fp8"), 65536
    query, heads = queries_of(F8, 4096, 64), head_lists(4096, 64, count)
    rows = pack_index_rows(torch.randn(num_keys, 128), layout)
    end = torch.arange(num_keys - 4096, num_keys).int() + 1
    where = torch.zeros(4096).int(), end
    args = on("cuda", *query, rows, *where)

    logits = index_logits_triton(*args, layout, heads=heads.cuda())

    some = torch.tensor([0, 1, 63, 64, 2047, 4095])
    for row in some.tolist():
        one = [tensor[row : row + 1] for tensor in (*args[:2], *args[3:], heads.cuda())]
        alone = index_logits_triton(*one[:2], args[2], *one[2:4], layout, heads=one[4])
        assert_bits_equal(logits[row : row + 1], alone)
    inputs = query[0][some], query[1][some], rows, where[0][some], end[some]
    expected = index_logits_ref(*inputs, layout, heads=heads[some])
    assert_near_largest(logits[some.cuda()].cpu(), expected, TOLERANCES[F8])
    for _ in range(19):
        assert torch.equal(index_logits_triton(*args, layout, heads=heads.cuda()), logits)


@pytest.mark.gpu
def test_a_graph_replays_with_other_heads_and_allocates_nothing() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((700,), layout)
    query = on("cuda", *queries_of(F8, 20, 64), stored.rows[0])
    heads, end = torch.zeros(20, 8).int().cuda(), torch.full((20,), 3).int().cuda()
    start, out = torch.zeros(20).int().cuda(), torch.full((20, 700), torch.nan, device="cuda")
    changed = head_lists(20, 64, 8), (torch.arange(20) * 35).int()

    def call() -> None:
        index_logits_triton(*query, start, end, layout, out=out, heads=heads)

    replay(call, (heads, end), changed)

    other = on("cuda", *changed)
    expected = index_logits_triton(*query, start, other[1], layout, heads=other[0])
    assert_bits_equal(out, expected)
    assert_allocates_nothing(call)
