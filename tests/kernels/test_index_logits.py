import pytest
import torch

from accuracy import assert_bits_equal, assert_near
from cases import PAGE_EDGES, naive_scores, paged_keys, queries
from hisparse_kernels.index_logits import index_logits, paged_index_logits
from hisparse_kernels.index_rows import pack_index_rows, quantize_index_q, unpack_index_rows
from hisparse_kernels.layouts import INDEX_LAYOUTS, IndexLayout, index_layout

LAYOUTS = pytest.mark.parametrize("layout", INDEX_LAYOUTS.values(), ids=INDEX_LAYOUTS.keys())


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@LAYOUTS
@pytest.mark.parametrize(("num_keys", "heads"), [(1, 1), (63, 2), (64, 64), (65, 32), (300, 7)])
def test_ragged_logits_match_the_formula_inside_and_are_minus_inf_outside(
    layout: IndexLayout, num_keys: int, heads: int
) -> None:
    index_q, weights = queries(6, heads)
    rows = pack_index_rows(torch.randn(num_keys, 128), layout)
    start = torch.randint(0, num_keys, (6,)).int()
    end = int32(0, 1, num_keys, num_keys, num_keys // 2, num_keys)
    expected = naive_scores(index_q, weights, unpack_index_rows(rows, layout)).float()
    key = torch.arange(num_keys)
    expected[(key < start[:, None]) | (key >= end[:, None])] = -torch.inf

    assert_near(index_logits(index_q, weights, rows, start, end, layout), expected)


@LAYOUTS
def test_a_packed_sequence_has_the_bits_it_has_alone(layout: IndexLayout) -> None:
    lengths = [65, 1, 130, 64]
    index_q, weights = queries(sum(lengths), 32)
    rows = pack_index_rows(torch.randn(sum(lengths), 128), layout)
    last = torch.arange(sum(lengths))
    first = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    start = first.repeat_interleave(torch.tensor(lengths)).int()
    packed = index_logits(index_q, weights, rows, start, (last + 1).int(), layout)

    for base, length in zip(first.tolist(), lengths, strict=True):
        part = slice(base, base + length)
        alone = index_logits(
            index_q[part],
            weights[part],
            rows[part],
            torch.zeros(length).int(),
            torch.arange(1, length + 1).int(),
            layout,
        )
        assert_bits_equal(packed[part, part].contiguous(), alone)


@LAYOUTS
@pytest.mark.parametrize("heads", [1, 8, 64])
def test_paged_logits_match_the_formula_at_page_edges(layout: IndexLayout, heads: int) -> None:
    stored = paged_keys(PAGE_EDGES, layout)
    index_q, weights = queries(len(PAGE_EDGES), heads)

    logits = paged_index_logits(
        index_q,
        weights,
        stored.index_pages,
        stored.page_table,
        torch.arange(len(PAGE_EDGES)).int(),
        stored.lengths,
        layout,
    )

    assert logits.shape == (len(PAGE_EDGES), 320)
    for row, length in enumerate(PAGE_EDGES):
        scores = naive_scores(index_q[row : row + 1], weights[row : row + 1], stored.keys[row])
        assert_near(logits[row : row + 1, :length], scores.float())
        assert bool((logits[row, length:] == -torch.inf).all())


@LAYOUTS
def test_paged_rows_have_the_bits_they_have_alone_and_in_ragged_form(layout: IndexLayout) -> None:
    stored = paged_keys((300, 70, 129), layout)
    row_seq = int32(0, 0, -1, 2, 1, 0, 2)
    row_end = int32(300, 17, 5, 129, 64, 299, 1)
    index_q, weights = queries(7, 32)
    paged = stored.index_pages, stored.page_table
    together = paged_index_logits(index_q, weights, *paged, row_seq, row_end, layout)

    for row in range(7):
        one = slice(row, row + 1)
        alone = paged_index_logits(
            index_q[one], weights[one], *paged, row_seq[one], row_end[one], layout
        )
        assert_bits_equal(together[one], alone)
        if row_seq[row] >= 0:
            rows = stored.rows[row_seq[row]]
            ragged = index_logits(index_q[one], weights[one], rows, int32(0), row_end[one], layout)
            assert_bits_equal(together[one, : len(rows)], ragged)


def test_a_padding_row_and_an_empty_row_are_minus_inf_throughout() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((70,), layout)
    index_q, weights = queries(2, 4)

    logits = paged_index_logits(
        index_q, weights, stored.index_pages, stored.page_table, int32(-1, 0), int32(70, 0), layout
    )

    assert bool((logits == -torch.inf).all())


def test_logits_are_written_to_the_callers_tensor() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((70,), layout)
    index_q, weights = queries(2, 4)
    paged_args = stored.index_pages, stored.page_table, int32(0, -1), int32(70, 3), layout
    ragged_args = stored.rows[0], int32(0, 9), int32(70, 10), layout

    for call, args, width in (
        (paged_index_logits, paged_args, 128),
        (index_logits, ragged_args, 70),
    ):
        out = torch.full((2, width), torch.nan)
        assert call(index_q, weights, *args, out=out) is out
        assert_bits_equal(out, call(index_q, weights, *args))


def test_no_rows_give_no_logits() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((70,), layout)
    index_q, weights = queries(0, 4)
    none = torch.zeros(0).int()

    paged = paged_index_logits(
        index_q, weights, stored.index_pages, stored.page_table, none, none, layout
    )
    ragged = index_logits(index_q, weights, stored.rows[0], none, none, layout)

    assert paged.shape == (0, 128)
    assert ragged.shape == (0, 70)


@LAYOUTS
@pytest.mark.parametrize("count", [1, 3, 8])
def test_picked_heads_are_the_only_ones_that_score(layout: IndexLayout, count: int) -> None:
    stored = paged_keys((130,), layout)
    index_q, weights = queries(5, 8)
    heads = torch.stack([torch.randperm(8)[:count] for _ in range(5)])
    few = weights.gather(1, heads)
    copies = index_q.gather(1, heads[:, :, None].expand(-1, -1, 128)), few
    ragged = stored.rows[0], int32(0, 0, 0, 5, 9), int32(130, 65, 0, 64, 8), layout
    paged = stored.index_pages, stored.page_table, int32(0, 0, -1, 0, 0), ragged[2], layout
    picked = heads.int()
    picked[2] = -1  # of a row that sees nothing

    for op, where in (index_logits, ragged), (paged_index_logits, paged):
        assert_bits_equal(op(index_q, weights, *where, heads=picked), op(*copies, *where))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_low_precision_queries_score_as_their_fp32_values(dtype: torch.dtype) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((130,), layout)
    index_q, weights = queries(3, 32)
    if dtype == torch.float8_e4m3fn:
        index_q, weights = quantize_index_q(index_q, weights)
    ends = int32(130, 64, 1), layout

    logits = index_logits(index_q.to(dtype), weights, stored.rows[0], int32(0, 0, 0), *ends)

    same = index_logits(index_q.to(dtype).float(), weights, stored.rows[0], int32(0, 0, 0), *ends)
    assert_bits_equal(logits, same)


def test_long_keys_are_scored_chunk_by_chunk_with_the_same_bits() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((8192 + 200,), layout)
    index_q, weights = queries(2, 8)
    whole = paged_index_logits(
        index_q,
        weights,
        stored.index_pages,
        stored.page_table,
        int32(0, 0),
        int32(8392, 8200),
        layout,
    )

    first = index_logits(
        index_q, weights, stored.rows[0][8100:], int32(0, 0), int32(292, 100), layout
    )

    assert_bits_equal(whole[:, 8100:8392].contiguous(), first)
