"""The states of the breaker, by times of the test's own; `rust/core/tests/tier_breaker.rs` too."""

import pytest

from hisparse_sidecar._core import TierDown
from hisparse_sidecar.remote.breaker import Admission, Breaker, BreakerLimits, BreakerState


@pytest.fixture
def breaker() -> Breaker:
    return Breaker("remote", BreakerLimits())


def fail(breaker: Breaker, *times: float) -> None:
    for now in times:
        breaker.failed(breaker.admit(now), now)


def test_five_failures_within_ten_seconds_open_it(breaker: Breaker) -> None:
    fail(breaker, 0, 0.001, 0.002, 0.003)
    assert breaker.state is BreakerState.CLOSED
    fail(breaker, 10)
    assert breaker.state is BreakerState.OPEN


def test_failures_that_lie_further_apart_do_not(breaker: Breaker) -> None:
    fail(breaker, *(2.501 * i for i in range(40)))
    assert breaker.state is BreakerState.CLOSED


def test_one_probe_a_second_is_let_through_and_a_good_one_closes(breaker: Breaker) -> None:
    fail(breaker, *[0] * 5)
    with pytest.raises(TierDown):
        breaker.admit(0.999)
    probe = breaker.admit(1)
    assert breaker.state is BreakerState.HALF_OPEN
    with pytest.raises(TierDown):
        breaker.admit(1.001)
    breaker.succeeded(probe)
    fail(breaker, *[1.002] * 4)  # what was before is forgotten
    assert breaker.state is BreakerState.CLOSED
    fail(breaker, 1.003)
    assert breaker.state is BreakerState.OPEN


def test_a_bad_probe_opens_it_for_another_second(breaker: Breaker) -> None:
    fail(breaker, *[0] * 5, 1.5)
    text = "remote down: 5 calls failed, 4 permitted; next try in 400 ms"
    with pytest.raises(TierDown, match=text):
        breaker.admit(2.1)
    breaker.admit(2.5)


def test_a_lost_probe_is_replaced_and_its_late_word_changes_nothing(breaker: Breaker) -> None:
    fail(breaker, *[0] * 5)
    lost, following = breaker.admit(1), breaker.admit(2)
    breaker.succeeded(lost)
    assert breaker.state is BreakerState.HALF_OPEN
    breaker.succeeded(following)
    for _ in range(5):
        breaker.failed(lost, 2.001)
    assert breaker.state is BreakerState.CLOSED


def test_calls_from_before_the_opening_change_nothing(breaker: Breaker) -> None:
    early = breaker.admit(0)
    fail(breaker, *[0] * 5)
    breaker.succeeded(early)
    breaker.failed(early, 0.9)
    assert breaker.state is BreakerState.OPEN
    breaker.admit(1)


def test_calls_that_one_deadline_has_ended_count_once(breaker: Breaker) -> None:
    def come_late(by: float) -> None:
        breaker.came_late(breaker.admit(by), by, by)

    for by in (1, 1.0001, 1.019, 1.0, 1.002, 1.01, 1.018):  # as threads come to it
        come_late(by)
    for by in (2, 3, 4):
        come_late(by)
    assert breaker.state is BreakerState.CLOSED
    come_late(4.03)
    assert breaker.state is BreakerState.OPEN


def test_deadlines_that_follow_closely_do_not_all_count_as_one(breaker: Breaker) -> None:
    for number in range(10):
        breaker.came_late(Admission(None), 0.015 * number, 1)
    assert breaker.state is BreakerState.OPEN


def test_a_late_probe_is_a_bad_one_whatever_its_deadline(breaker: Breaker) -> None:
    for by in (1, 1, 2, 3, 4, 5):
        breaker.came_late(Admission(None), by, 5)
    probe = breaker.admit(6)
    breaker.came_late(probe, 5, 6.5)
    assert breaker.state is BreakerState.OPEN
    with pytest.raises(TierDown):
        breaker.admit(7.4)


def test_a_probe_that_was_not_made_is_due_again_at_once(breaker: Breaker) -> None:
    fail(breaker, *[0] * 5)
    breaker.not_made(breaker.admit(1), 1.1)
    breaker.succeeded(breaker.admit(1.1))
    assert breaker.state is BreakerState.CLOSED
    breaker.not_made(breaker.admit(1.2), 1.2)
    assert breaker.state is BreakerState.CLOSED
