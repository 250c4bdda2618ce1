import pytest
import torch

from accuracy import assert_bits_equal, assert_near
from cases import naive_scores, paged_keys, queries
from hisparse_kernels.layouts import INDEX_LAYOUTS, IndexLayout, index_layout
from hisparse_kernels.refine_logits import refine_logits
from hisparse_kernels.score_positions import score_positions

LAYOUTS = pytest.mark.parametrize("layout", INDEX_LAYOUTS.values(), ids=INDEX_LAYOUTS.keys())


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@LAYOUTS
@pytest.mark.parametrize(("heads", "count"), [(1, 1), (8, 63), (64, 200)])
def test_scores_of_positions_match_the_formula(layout: IndexLayout, heads: int, count: int) -> None:
    stored = paged_keys((300, 65, 1), layout)  # all else in the pool is NaN
    row_seq = int32(0, 1, 2, 0)
    index_q, weights = queries(4, heads)
    positions = torch.stack(
        [torch.randint(0, int(stored.lengths[seq]), (count,)) for seq in row_seq]
    )

    logits = score_positions(
        index_q, weights, stored.index_pages, stored.page_table, row_seq, positions.int(), layout
    )

    for row, seq in enumerate(row_seq.tolist()):
        keys = stored.keys[seq][positions[row]]
        assert_near(
            logits[row], naive_scores(index_q[row, None], weights[row, None], keys)[0].float()
        )


def test_no_position_no_page_and_a_padding_row_are_minus_inf() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((70, 200), layout)
    index_q, weights = queries(3, 4)
    positions = int32(-1, 69, -1, 5), int32(0, 1, 2, 3), int32(128, 191, 256, 2**31 - 1)

    logits = score_positions(
        index_q,
        weights,
        stored.index_pages,
        stored.page_table,
        int32(0, -1, 0),  # the first sequence has two pages of the table's four
        torch.stack(positions),
        layout,
    )

    assert logits.isfinite().tolist() == [[False, True, False, True], [False] * 4, [False] * 4]
    assert bool((logits[~logits.isfinite()] == -torch.inf).all())


@LAYOUTS
def test_a_token_has_the_bits_that_its_block_gives_it(layout: IndexLayout) -> None:
    stored = paged_keys((640,), layout, block_tokens=128)
    index_q, weights = queries(3, 32)
    slots = (stored.page_table[0, ::2] // 2).expand(3, -1).contiguous()
    blocks = torch.arange(5).int().expand(3, -1).contiguous()
    refined = torch.empty(3, 640)
    refine_logits(
        index_q,
        weights,
        stored.index_pages,
        slots,
        blocks,
        int32(639, 639, 639),
        128,
        layout,
        refined,
    )
    positions = torch.stack([torch.randperm(640)[:100] for _ in range(3)]).int()

    logits = score_positions(
        index_q,
        weights,
        stored.index_pages,
        stored.page_table,
        int32(0, 0, 0),
        positions,
        layout,
    )

    assert_bits_equal(logits, refined.gather(1, positions.long()))


def test_logits_are_written_to_the_callers_tensor() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((70,), layout)
    index_q, weights = queries(1, 4)
    args = stored.index_pages, stored.page_table, int32(0), int32(3, 69)[None], layout
    out = torch.full((1, 2), torch.nan)

    assert score_positions(index_q, weights, *args, out=out) is out
    assert_bits_equal(out, score_positions(index_q, weights, *args))


@pytest.mark.parametrize(("rows", "count"), [(0, 5), (2, 0)])
def test_nothing_to_score_gives_no_logits(rows: int, count: int) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((70,), layout)
    positions, row_seq = torch.zeros(rows, count).int(), torch.zeros(rows).int()
    pool = stored.index_pages, stored.page_table

    logits = score_positions(*queries(rows, 4), *pool, row_seq, positions, layout)

    assert logits.shape == (rows, count)
