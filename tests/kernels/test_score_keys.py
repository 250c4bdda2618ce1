import pytest
import torch

from accuracy import assert_bits_equal, assert_near
from cases import naive_scores, queries
from hisparse_kernels.score_keys import halving_sum, score_keys

HEADS = [1, 2, 3, 7, 8, 31, 32, 64, 128]


def scored(index_q: torch.Tensor, weights: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    out = torch.full((len(index_q), len(keys)), torch.nan)
    score_keys(index_q, weights, keys, None, out)
    return out


@pytest.mark.parametrize("heads", HEADS)
def test_scores_match_the_formula(heads: int) -> None:
    index_q, weights = queries(5, heads)
    keys = torch.randn(192, 128)

    assert_near(scored(index_q, weights, keys), naive_scores(index_q, weights, keys).float())


@pytest.mark.parametrize("heads", HEADS)
def test_scores_have_the_same_bits_for_any_number_of_rows_and_keys(heads: int) -> None:
    index_q, weights = queries(150, heads)
    keys = torch.randn(1088, 128)
    whole = scored(index_q, weights, keys)

    for rows in (1, 2, 3, 5, 8, 17, 64, 149):
        for num_keys in (64, 128, 192, 320, 1024):
            some = scored(index_q[-rows:], weights[-rows:], keys[-num_keys:])
            assert_bits_equal(some, whole[-rows:, -num_keys:])


def test_scores_have_the_same_bits_whatever_the_other_rows_and_keys_hold() -> None:
    index_q, weights = queries(40, 32)
    keys = torch.randn(256, 128)
    whole = scored(index_q, weights, keys)
    index_q[1:], keys[64:] = torch.nan, torch.nan

    assert_bits_equal(scored(index_q, weights, keys)[0, :64], whole[0, :64])


def test_rows_and_keys_may_come_in_any_order() -> None:
    index_q, weights = queries(70, 16)
    keys = torch.randn(576, 128)
    row_order, key_order = torch.randperm(70), torch.randperm(576)

    moved = scored(index_q[row_order], weights[row_order], keys[key_order])

    assert_bits_equal(moved, scored(index_q, weights, keys)[row_order][:, key_order])


@pytest.mark.parametrize("threads", [1, 2])
def test_scores_have_the_same_bits_for_any_number_of_threads(threads: int) -> None:
    index_q, weights = queries(65, 32)
    keys = torch.randn(512, 128)
    whole, before = scored(index_q, weights, keys), torch.get_num_threads()

    torch.set_num_threads(threads)
    try:
        assert_bits_equal(scored(index_q, weights, keys), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 64, 100])
def test_halving_sum_adds_every_term_once(count: int) -> None:
    terms = torch.randint(-1000, 1000, (3, count, 65)).float()

    assert torch.equal(halving_sum(terms.clone()), terms.sum(1))
