import pytest
import torch

from accuracy import assert_bits_equal
from cases import PagedKeys, paged_keys, queries
from hisparse_kernels.layouts import INDEX_LAYOUTS, IndexLayout, index_layout
from hisparse_kernels.route_heads import route_heads

LAYOUTS = pytest.mark.parametrize("layout", INDEX_LAYOUTS.values(), ids=INDEX_LAYOUTS.keys())


def naive_energy(
    index_q: torch.Tensor, weights: torch.Tensor, pooled: torch.Tensor, group_blocks: int
) -> torch.Tensor:
    """[heads] float64 for one row."""
    groups = [group.double().mean(0) for group in pooled.split(group_blocks) if len(group)]
    energy = torch.zeros(len(weights)).double()
    for group in groups:
        energy += (weights.double() * (index_q.double() @ group).relu()).abs()
    return energy


def routed(
    stored: PagedKeys,
    index_q: torch.Tensor,
    weights: torch.Tensor,
    row_seq: list[int],
    num_complete: list[int],
    num_routed: int,
    layout: IndexLayout,
) -> torch.Tensor:
    return route_heads(
        index_q,
        weights,
        stored.index_pages,
        stored.page_table,
        torch.tensor(row_seq).int(),
        torch.tensor(num_complete).int(),
        num_routed,
        layout,
    )


@LAYOUTS
@pytest.mark.parametrize(("heads", "num_routed"), [(64, 8), (5, 3), (1, 1), (32, 31)])
def test_routed_heads_are_those_of_the_largest_energy(
    layout: IndexLayout, heads: int, num_routed: int
) -> None:
    stored = paged_keys((1, 7, 8, 9, 100, 700), layout)
    row_seq = [0, 1, 2, 3, 4, 4, 4, 5, 5, 5]
    num_complete = [1, 7, 8, 9, 100, 3, 64, 700, 512, 513]
    index_q, weights = queries(len(row_seq), heads)

    result = routed(stored, index_q, weights, row_seq, num_complete, num_routed, layout)

    for row, (seq, complete) in enumerate(zip(row_seq, num_complete, strict=True)):
        energy = naive_energy(index_q[row], weights[row], stored.keys[seq][:complete], 8)
        order = sorted(range(heads), key=lambda head: (-energy[head].item(), head))
        if num_routed < heads:  # the case says nothing where fp32 could swap the last two
            least, next_one = energy[order[num_routed - 1]], energy[order[num_routed]]
            assert least == 0 or float(least - next_one) > 1e-6 * float(least)
        assert result[row].tolist() == sorted(order[:num_routed])


def test_without_a_complete_block_the_lowest_heads_are_taken() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((10,), layout)
    index_q, weights = queries(2, 16)

    result = routed(stored, index_q, weights, [0, 0], [0, 0], 4, layout)

    assert result.tolist() == [[0, 1, 2, 3]] * 2


def test_equal_heads_tie_to_the_lowest() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((50,), layout)
    index_q, weights = queries(1, 1)
    twins, same = index_q.expand(1, 12, 128).contiguous(), weights.expand(1, 12).contiguous()

    assert routed(stored, twins, same, [0], [50], 5, layout).tolist() == [[0, 1, 2, 3, 4]]


def test_the_sign_of_a_weight_does_not_matter() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((90,), layout)
    index_q, weights = queries(4, 16)
    args = [0] * 4, [90, 17, 3, 64], 4, layout

    assert_bits_equal(
        routed(stored, index_q, weights, *args), routed(stored, index_q, -weights, *args)
    )


def test_padding_rows_get_minus_one_and_rows_do_not_depend_on_each_other() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((700, 30), layout)
    row_seq = [0, -1, 1, 0] + [0] * 70
    num_complete = [700, 5, 30, 12, *range(600, 670)]
    index_q, weights = queries(len(row_seq), 64)
    weights[:] = 1.0  # near-equal energies: a changed bit would show
    index_q[:, 1::2] = index_q[:, ::2] * (1 + 1e-7)
    together = routed(stored, index_q, weights, row_seq, num_complete, 8, layout)

    assert together[1].tolist() == [-1] * 8
    for row in (0, 2, 3, 4, 40, 73):
        one = slice(row, row + 1)
        alone = routed(
            stored, index_q[one], weights[one], row_seq[one], num_complete[one], 8, layout
        )
        assert_bits_equal(alone, together[one])


def test_heads_are_written_to_the_callers_tensor() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((20,), layout)
    index_q, weights = queries(2, 8)
    row_seq, complete = torch.tensor([0, -1]).int(), torch.tensor([20, 20]).int()
    args = stored.index_pages, stored.page_table, row_seq, complete, 3, layout
    out = torch.full((2, 3), 77, dtype=torch.int32)

    assert route_heads(index_q, weights, *args, out=out) is out
    assert torch.equal(out, route_heads(index_q, weights, *args))


def test_all_heads_routed_are_all_heads_in_order() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((20,), layout)
    index_q, weights = queries(3, 8)

    result = routed(stored, index_q, weights, [0, 0, 0], [20, 0, 9], 8, layout)

    assert result.tolist() == [list(range(8))] * 3
