"""What rank 0 decides at once, and what it waits for: nothing half written is shared or moved."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hisparse_sidecar.errors import TierDown
from hisparse_sidecar.ranks import RankShare
from tests.ranks.test_decisions import SLOTS
from tests.ranks.together import SECONDS, on_each, together

PROMPT = list(range(100))


@contextmanager
def waits(call: Callable[[], object]) -> Iterator[None]:
    """The call does not return before the body has ended."""
    calling = threading.Thread(target=call)
    calling.start()
    calling.join(0.2)
    assert calling.is_alive()
    yield
    calling.join(SECONDS)
    assert not calling.is_alive()


def prompt_of_two(path: Path) -> tuple[RankShare, RankShare, int]:
    """Two ranks in a step that fills the first page of a prompt."""
    (leader, _), (follower, _) = together(path)
    shares = [leader, follower]

    def open_prompt(rank: RankShare) -> int:
        return rank.open_prompt("", PROMPT, 100, **SLOTS, deadline_seconds=SECONDS)[0]

    (sequence, _) = on_each(shares, open_prompt)
    assert isinstance(sequence, int)
    on_each(shares, lambda rank: rank.append_rows([(sequence, 100)], PROMPT))
    for rank in shares:
        for anchor in range(2):
            rank.advance_pooled(sequence, anchor, 100)
    return leader, follower, sequence


def end(rank: RankShare, sequence: int, *, committed: bool = True) -> None:
    rank.end_step(committed=committed)
    if committed:
        rank.publish(sequence)
    else:
        rank.truncate(sequence, 0)


MOVES: dict[str, Callable[[RankShare, int], object]] = {
    "preempt": lambda rank, sequence: rank.preempt(sequence),
    "drain": lambda rank, _: rank.drain(SECONDS),
    "flush": lambda rank, _: rank.flush(SECONDS),
    "evict": lambda rank, _: rank.evict(1),
    "fork": lambda rank, sequence: rank.fork(sequence, 0, 10, **SLOTS, deadline_seconds=SECONDS),
    "prompt": lambda rank, _: rank.open_prompt("", PROMPT, 9, **SLOTS, deadline_seconds=SECONDS),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("committed", [True, False])
def test_no_page_moves_while_a_rank_is_in_a_step(path: Path, name: str, committed: bool) -> None:
    leader, follower, sequence = prompt_of_two(path)
    end(leader, sequence, committed=committed)
    with waits(lambda: MOVES[name](leader, sequence)):
        assert leader.prefix_stats().pages == 0
        end(follower, sequence, committed=committed)
        MOVES[name](follower, sequence)
    on_each([leader, follower], lambda rank: rank.check_integrity())


OTHERS: dict[str, Callable[[RankShare, int], object]] = {
    "close": lambda rank, sequence: rank.close(sequence),
    "truncate": lambda rank, sequence: rank.truncate(sequence, 70),
    "open": lambda rank, _: rank.open_sequence(9, 9, **SLOTS),
    "usage": lambda rank, _: rank.tenant_usage(""),
    "quota": lambda rank, _: rank.set_quota("", 50),
    "append": lambda rank, sequence: rank.append_rows([(sequence, 1)]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_pages_are_shared_once_every_writer_has_committed(path: Path, name: str) -> None:
    leader, follower, sequence = prompt_of_two(path)
    end(leader, sequence)
    with waits(lambda: OTHERS[name](leader, sequence)):
        assert leader.prefix_stats().pages == 0
        end(follower, sequence)
        OTHERS[name](follower, sequence)
    assert leader.prefix_stats().pages == 1


def test_a_sequence_of_an_aborted_step_is_cut_at_once(path: Path) -> None:
    leader, follower, sequence = prompt_of_two(path)
    for rank in (leader, follower):
        end(rank, sequence, committed=False)
        rank.close(sequence)


def test_the_core_learns_of_pooled_keys_once_every_rank_has_written_them(path: Path) -> None:
    (leader, _), (follower, _) = together(path)
    shares: list[RankShare] = [leader, follower]
    core = leader._manager  # type: ignore[attr-defined]
    (sequence, _) = on_each(shares, lambda rank: rank.open_sequence(200, 10, **SLOTS))
    assert isinstance(sequence, int)
    on_each(shares, lambda rank: rank.append_rows([(sequence, 64)]))
    for rank in shares:
        assert rank.advance_pooled(sequence, 0, 64) == (0, 1, 0)
        assert rank.pooled_state(sequence, 0) == (1, 0)
        rank.end_step(committed=True)
    assert core.pooled_state(sequence, 0) == (0, 0)
    on_each(shares, lambda rank: rank.append_rows([(sequence, 1)]))
    assert core.pooled_state(sequence, 0) == (1, 0)
    for rank in shares:
        rank.advance_pooled(sequence, 0, 1)
        rank.end_step(committed=False)
    on_each(shares, lambda rank: rank.truncate(sequence, 64))
    on_each(shares, lambda rank: rank.check_integrity())
    assert core.pooled_state(sequence, 0) == leader.pooled_state(sequence, 0) == (1, 0)


def test_opening_waits_for_nobody_and_stepping_for_all(path: Path) -> None:
    (leader, _), (follower, _) = together(path)
    sequence = leader.open_sequence(200, 10, **SLOTS)  # rank 1 has not come
    stepping = threading.Thread(target=leader.append_rows, args=([(sequence, 3)],))
    stepping.start()
    stepping.join(0.3)
    assert stepping.is_alive()
    assert follower.open_sequence(200, 10, **SLOTS) == sequence
    assert follower.append_rows([(sequence, 3)]) == [0]
    stepping.join(SECONDS)
    assert not stepping.is_alive()


def test_what_rank_0_decided_before_it_left_is_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (leader, _), (follower, _) = together(path)
    arrive = follower._link.send  # type: ignore[attr-defined]

    def arrive_too_late(body: bytes, until: float) -> None:
        assert leader.open_sequence(200, 10, **SLOTS) >= 0
        leader.leave()
        arrive(body, until)

    monkeypatch.setattr(follower._link, "send", arrive_too_late)  # type: ignore[attr-defined]
    sequence = follower.open_sequence(200, 10, **SLOTS)
    monkeypatch.undo()
    assert follower.admitted_tokens(sequence) == 210
    with pytest.raises(TierDown, match="rank 0 has gone after decision 1, call 2 needs it"):
        follower.open_sequence(200, 10, **SLOTS)
