"""The check of a selection: what it lets pass, and what not."""

import pytest
import torch

from benchmarks.ops.compare import WrongResultError
from benchmarks.select.check_chosen import check_ascending, check_chosen

INF = float("inf")
LOGITS = torch.tensor([[5.0, 1.0, 3.0, 3.001, 4.0, -INF]])


@pytest.mark.parametrize(
    ("found", "k"),
    [
        ([0, 4], 2),
        ([4, 0], 2),  # in any order
        ([0, 3, 4], 3),
        ([0, 2, 4], 3),  # 3.0 and 3.001 are a near-tie
        ([0, 1, 2, 3, 4], 5),
        ([0, 1, 2, 3, 4, -1], 6),  # no more are visible
    ],
)
def test_the_best_pass(found: list[int], k: int) -> None:
    check_chosen("x", LOGITS, torch.tensor([found]), k)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([0, 1, 3], "1 better ones left out, 1 worse ones taken"),
        ([0, 4, 5], "3 to 3 chosen of 3 to 3, 1 of them not visible"),
        ([0, 4, -1], "2 to 2 chosen of 3 to 3, 0 of them not visible"),
        ([0, 4, 4], "a column was taken 2 times"),
        ([0, 4, 6], r"columns 0\.\.6"),
        ([0, 4, -2], r"columns -2\.\.4"),
        ([0, 4], r"\[1, 2\], needs \[1, 3\]"),
    ],
)
def test_others_are_refused_with_the_reason(found: list[int], reason: str) -> None:
    with pytest.raises(WrongResultError, match=f"x: {reason}"):
        check_chosen("x", LOGITS, torch.tensor([found]), 3)


def test_of_equal_logits_any_pass_and_none_may_be_more_than_its_share() -> None:
    zeros = torch.zeros(1, 8)
    check_chosen("x", zeros, torch.tensor([[1, 6]]), 2)
    with pytest.raises(WrongResultError, match="3 to 3 chosen of 2 to 2"):
        check_chosen("x", torch.tensor([[0.0, 0.0, -INF]]), torch.tensor([[0, 1, 2]]), 3)


def test_what_must_be_chosen_may_not_be_left_out() -> None:
    logits = torch.tensor([[INF, 1.0, 2.0, INF]])
    check_chosen("x", logits, torch.tensor([[0, 2, 3]]), 3)
    with pytest.raises(WrongResultError, match="1 better ones left out"):
        check_chosen("x", logits, torch.tensor([[0, 1, 2]]), 3)


def test_ascending_means_padding_last() -> None:
    check_ascending("x", torch.tensor([[0, 3, 5, -1], [2, -1, -1, -1]]))
    for wrong in ([0, 5, 3, -1], [0, -1, 3, 5]):
        with pytest.raises(WrongResultError, match="x: not in ascending order"):
            check_ascending("x", torch.tensor([wrong]))
