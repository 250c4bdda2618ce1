"""Ranks that die or are late: a typed error in time that names the rank, and nothing is lost."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from hisparse_sidecar import Sidecar
from hisparse_sidecar.errors import DeadlinePassed, HisparseError
from hisparse_sidecar.ranks import RankPlace
from tests.pipeline.world import Rows, random_rows, run_step, small_config
from tests.ranks.processes import Group, share_of
from tests.ranks.test_decisions import SLOTS

NOTICE_SECONDS = 5.0  # far below the deadline of these groups, 20 s


def error_of(call: Callable[[], object], most_seconds: float = NOTICE_SECONDS) -> str:
    began = time.monotonic()
    with pytest.raises(HisparseError) as caught:
        call()
    assert time.monotonic() - began < most_seconds
    return f"{type(caught.value).__name__}: {caught.value}"


def step_until_one_dies(place: RankPlace, victim: int, in_a_step: bool) -> list[str]:
    """Two steps, then one rank dies; what the others see, and whether they can end."""
    sidecar = Sidecar(small_config(), place)
    sequence = sidecar.open(100, 100)
    run_step(sidecar, [Rows(sequence, 70, 1)], "prefill")
    run_step(sidecar, [Rows(sequence, 1, 2)], "decode")
    if place.rank == victim:
        if in_a_step:
            sidecar.begin_step([(sequence, 1)], "decode")
            sidecar.run_layer(0, random_rows(sidecar.config, 0, 1, 3))
        os.kill(os.getpid(), signal.SIGKILL)
    if in_a_step:
        run_step(sidecar, [Rows(sequence, 1, 3)], "decode")
    found = [error_of(lambda: sidecar.begin_step([(sequence, 1)], "decode")) for _ in range(2)]
    found.append(error_of(lambda: sidecar.open(1, 1)))
    length = sidecar.length(sequence)
    sidecar.truncate(sequence, length - 1)
    sidecar.close_sequence(sequence)
    core = sidecar.stats().core
    if place.leads:
        assert core.host_pages_free == core.host_pages_total
    sidecar.close()
    return [*found, str(length)]


@pytest.mark.parametrize("in_a_step", [False, True])
def test_followers_notice_that_rank_0_has_died(in_a_step: bool) -> None:
    with Group(step_until_one_dies, 3, 0, in_a_step) as group:
        for rank in group.ranks[1:]:
            begun, again, opened, length = rank.report()
            assert begun.startswith("TierDown: rank 0 has gone after decision ")
            assert again == opened == begun
            assert length == ("72" if in_a_step else "71")


@pytest.mark.parametrize("in_a_step", [False, True])
def test_every_rank_names_the_follower_that_has_died(in_a_step: bool) -> None:
    with Group(step_until_one_dies, 3, 2, in_a_step) as group:
        leader, follower = (rank.report() for rank in group.ranks[:2])
    assert leader[0].startswith("TierDown: rank 2 came to decision ")
    assert "then: " in leader[0]
    assert follower[0].startswith(leader[0])
    assert leader[0] == leader[1] == leader[2]
    assert leader[3] == follower[3] == ("72" if in_a_step else "71")


def until_it_is_made(call: Callable[[], object]) -> list[str]:
    """Repeats a call as long as others are late; what it raised."""
    raised: list[str] = []
    while error := lateness_of(call):
        raised.append(error)
    return raised


def lateness_of(call: Callable[[], object]) -> str:
    try:
        call()
    except DeadlinePassed as error:
        return str(error)
    return ""


def be_late(place: RankPlace, late_rank: int, seconds: float) -> tuple[list[str], list[int]]:
    share, _ = share_of(place, small_config())
    sequence = share.open_sequence(100, 100, **SLOTS)
    share.append_rows([(sequence, 3)])
    share.end_step(committed=True)
    if place.rank == late_rank:
        time.sleep(seconds)
    raised = until_it_is_made(lambda: share.append_rows([(sequence, 2)]))
    share.end_step(committed=True)
    share.check_integrity()
    return raised, [share.length(sequence), len(share.host_pages(sequence))]


def test_a_late_follower_is_named_and_the_call_can_be_made_again() -> None:
    with Group(be_late, 3, 2, 2.6, deadline_seconds=1.0) as group:
        (leader, *ends), (follower, *same), (late, *also) = group.reports()
    assert ends == same == also == [[5, 1]]
    assert leader == follower == late  # rank 2 takes the decisions that it has missed
    assert 2 <= len(leader) <= 3
    found, needed = leader[0].split("; ")
    assert found == "rank 2 came to decision 2, append(0, 4294967296, 3), after 0 steps"
    assert needed == "needed decision 3, append(0, 4294967296, 2), after 1 steps, in 1 s"


def test_a_late_rank_0_is_named_and_the_call_can_be_made_again() -> None:
    with Group(be_late, 2, 0, 3.0, deadline_seconds=1.0) as group:
        (leader, *ends), (follower, *same) = group.reports()
    assert ends == same == [[5, 1]]
    assert leader == []
    found, needed = "rank 0 was last heard of at decision 2", "decision 3, append(0, 4294967296, 2)"
    assert set(follower) == {f"{found}; needed {needed}, in 2 s"}


def leave_early(place: RankPlace) -> str:
    with Sidecar(small_config(), place) as sidecar:
        sequence = sidecar.open(100, 100)
        run_step(sidecar, [Rows(sequence, 5, 1)], "prefill")
        if place.rank == 1:
            return ""
        return error_of(lambda: run_step(sidecar, [Rows(sequence, 1, 2)], "decode"))


def test_a_rank_that_closes_its_sidecar_ends_the_group() -> None:
    with Group(leave_early, 3) as group:
        leader, _, follower = group.reports()
    assert leader.startswith("TierDown: rank 1 ")
    assert leader.endswith("then left: it has closed its sidecar")
    assert follower == leader
