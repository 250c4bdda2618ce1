"""The bound against published values, and against the binomial sum that defines it."""

import math

import pytest

from hisparse_sidecar.clopper_pearson import lower_bound
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.stats import SelectionCounts

pytestmark = pytest.mark.cpu_only


def at_least(successes: int, trials: int, p: float) -> float:
    terms = (
        math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes, trials + 1)
    )
    return math.fsum(terms)


@pytest.mark.parametrize(
    ("successes", "trials", "confidence", "wanted"),
    [  # lower ends of two-sided 95 % intervals, as tables have them
        (5, 10, 0.975, 0.1871),
        (8, 10, 0.975, 0.4439),
        (1, 10, 0.975, 0.0025),
        (10, 10, 0.975, 0.6915),
        (95, 100, 0.975, 0.8872),
        (8, 10, 0.95, 0.4931),
    ],
)
def test_known_values(successes: int, trials: int, confidence: float, wanted: float) -> None:
    assert lower_bound(successes, trials, confidence) == pytest.approx(wanted, abs=6e-5)


@pytest.mark.parametrize(
    ("successes", "trials"), [(1, 1), (1, 50), (17, 50), (49, 50), (50, 50), (499, 500), (3, 700)]
)
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_at_the_bound_so_many_successes_have_the_probability_that_is_left(
    successes: int, trials: int, confidence: float
) -> None:
    p = lower_bound(successes, trials, confidence)
    assert at_least(successes, trials, p) == pytest.approx(1 - confidence, rel=1e-9)


def test_all_of_many_trials_follow_the_closed_form() -> None:
    for trials in (1, 3000, 10**7):
        wanted = 0.05 ** (1 / trials)
        assert lower_bound(trials, trials) == pytest.approx(wanted, rel=1e-8)


def test_of_many_trials_the_bound_is_near_the_normal_one() -> None:
    trials, share = 10**8, 0.9
    wanted = share - 1.6448536 * math.sqrt(share * (1 - share) / trials)
    assert lower_bound(int(share * trials), trials) == pytest.approx(wanted, abs=1e-7)


def test_no_success_bounds_nothing() -> None:
    assert lower_bound(0, 9) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 2), "3 successes of 2 trials, need 0 to 2"),
        ((0, 0), "0 successes of 0 trials"),
        ((-1, 5), "-1 successes"),
        ((1, 2, 1.0), "confidence is 1.0, must be > 0 and < 1"),
    ],
)
def test_what_is_no_count_is_refused(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        lower_bound(*arguments)  # type: ignore[arg-type]


def test_recall_is_bounded_by_rows_and_not_by_their_many_tokens() -> None:
    counts = SelectionCounts(audited_rows=100, audited_tokens=204800, found_tokens=194560)
    assert counts.recall == 0.95
    assert counts.recall_lower_bound() == lower_bound(95, 100)
    assert (SelectionCounts().recall, SelectionCounts().recall_lower_bound()) == (1.0, 0.0)
