"""The checks before timing: what they let pass, and what not."""

import pytest
import torch

from benchmarks.ops.compare import (
    Tolerance,
    WrongResultError,
    check_equal,
    check_logits,
    check_mostly_equal,
    check_near,
    check_same_values,
)

LIMIT = Tolerance(absolute=0.1, relative=0.01, diff=1e-3)
INF = float("inf")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0]),
        ([1.05, 2.0], [1.0, 2.0]),  # by the absolute bound
        ([100.9, 2.0], [100.0, 2.0]),  # by the relative one
        ([1.0, -INF], [1.0, -INF]),
        ([-INF, -INF], [-INF, -INF]),
        ([0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_near_values_and_equal_infinities_pass(found: list[float], expected: list[float]) -> None:
    check_near("x", torch.tensor(found), torch.tensor(expected), LIMIT)


@pytest.mark.parametrize(
    ("found", "expected", "reason"),
    [
        ([1.2, 2.0], [1.0, 2.0], "1 of 2 too far, at most 0.2"),
        ([1.0, 3.0], [1.0, -INF], "infinities or NaN differ"),
        ([1.0, -INF], [1.0, 3.0], "infinities or NaN differ"),
        ([1.0, INF], [1.0, -INF], "infinities or NaN differ"),
        ([1.0, float("nan")], [1.0, 2.0], "infinities or NaN differ"),
        ([1.0], [1.0, 2.0], r"\[1\], needs \[2\]"),
        ([0.05, -0.05], [-0.04, 0.04], "calc_diff is"),
    ],
)
def test_other_values_are_refused_with_the_reason(
    found: list[float], expected: list[float], reason: str
) -> None:
    with pytest.raises(WrongResultError, match=f"x: {reason}"):
        check_near("x", torch.tensor(found), torch.tensor(expected), LIMIT)


def test_logits_are_near_in_units_of_the_largest() -> None:
    expected = torch.tensor([1000.0, 0.1, -INF])
    check_logits("x", torch.tensor([1000.5, 0.9, -INF]), expected)
    with pytest.raises(WrongResultError):
        check_logits("x", torch.tensor([1000.5, 1.2, -INF]), expected)


def test_equal_means_every_element() -> None:
    check_equal("x", torch.tensor([1, 2]), torch.tensor([1, 2]))
    with pytest.raises(WrongResultError, match="x: 1 of 2 differ"):
        check_equal("x", torch.tensor([1, 3]), torch.tensor([1, 2]))


def test_a_share_of_the_rows_may_choose_otherwise() -> None:
    expected = torch.zeros(20, 2)
    one, two = expected.clone(), expected.clone()
    one[3], two[3:5] = 1, 1
    check_mostly_equal("x", one, expected, share=0.05)
    with pytest.raises(WrongResultError, match="x: 2 of 20 rows differ"):
        check_mostly_equal("x", two, expected, share=0.05)


VALUES = torch.tensor([[3.0, 1.0, 3.0, 2.0]])


@pytest.mark.parametrize("found", [[0, 2], [2, 0]])
def test_a_choice_in_any_order_passes(found: list[int]) -> None:
    check_same_values("x", VALUES, torch.tensor([found]), torch.tensor([[0, 2]]))


def test_another_column_of_the_same_value_passes() -> None:
    check_same_values("x", VALUES, torch.tensor([[2]]), torch.tensor([[0]]))


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([0, 0], "a column was taken twice"),
        ([0, 3], "1 of 2 differ"),
        ([0, -1], r"columns -1\.\.0"),
        ([0, 4], r"columns 0\.\.4"),
    ],
)
def test_a_worse_or_impossible_choice_is_refused(found: list[int], reason: str) -> None:
    with pytest.raises(WrongResultError, match=reason):
        check_same_values("x", VALUES, torch.tensor([found]), torch.tensor([[0, 2]]))
