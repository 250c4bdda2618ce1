"""A rank that makes another call than rank 0: an error that names both, on every rank, at once."""

import time
from pathlib import Path

import pytest

from hisparse_sidecar import Sidecar
from hisparse_sidecar.errors import HisparseError, WrongState
from hisparse_sidecar.ranks import RankPlace
from tests.pipeline.world import random_rows, small_config
from tests.ranks.processes import Group, share_of
from tests.ranks.test_decisions import SLOTS

DEADLINE_SECONDS = 20.0


def error_of(call: object, *arguments: object, **options: object) -> str:
    """What a call raises, and that it came long before any deadline."""
    began = time.monotonic()
    with pytest.raises(HisparseError) as caught:
        call(*arguments, **options)  # type: ignore[operator]
    assert time.monotonic() - began < DEADLINE_SECONDS / 4
    return f"{type(caught.value).__name__}: {caught.value}"


def diverge_in_a_step(place: RankPlace) -> tuple[str, str, list[int]]:
    share, _ = share_of(place, small_config())
    first = share.open_sequence(100, 100, **SLOTS)
    second = share.open_sequence(100, 100, **SLOTS)
    share.append_rows([(first, 3), (second, 4)])
    share.end_step(committed=True)
    rows = [(first, 1), (second, 2 if place.rank == 1 else 1)]
    found = error_of(share.append_rows, rows)
    again = error_of(share.open_sequence, 10, 10, **SLOTS)
    share.truncate(first, 1)
    lengths = [share.length(first), share.length(second)]
    share.close(first)
    share.close(second)
    return found, again, lengths


def test_other_arguments_are_an_error_on_every_rank() -> None:
    with Group(diverge_in_a_step, 3) as group:
        reports = group.reports()
    for found, again, lengths in reports:
        assert found.startswith("WrongState: call 4: rank 1 made append(")
        assert "rank 0 made append(" in found
        assert found.count("after 1 steps") == 2
        assert again == found
        assert lengths == [1, 4]  # the call that differed has appended nothing anywhere


def diverge_in_kind(place: RankPlace) -> str:
    share, _ = share_of(place, small_config())
    sequence = share.open_sequence(100, 100, **SLOTS)
    if place.rank == 2:
        return error_of(share.close, sequence)
    return error_of(share.append_rows, [(sequence, 1)])


def test_another_call_is_an_error_on_every_rank() -> None:
    with Group(diverge_in_kind, 3) as group:
        for found in group.reports():
            assert "call 2: rank 2 made close(" in found
            assert "rank 0 made append(" in found


def diverge_where_nobody_waits(place: RankPlace) -> list[str]:
    """Rank 0 opens at once; rank 1 finds out when it comes by, and rank 0 with the next step."""
    share, _ = share_of(place, small_config())
    if place.rank == 1:
        time.sleep(0.5)
        found = error_of(share.open_sequence, 100, 101, **SLOTS)
        return [found, error_of(share.append_rows, [(1, 1)])]
    sequence = share.open_sequence(100, 100, **SLOTS)
    return [error_of(share.append_rows, [(sequence, 1)])]


def test_rank_0_learns_why_a_rank_has_left() -> None:
    with Group(diverge_where_nobody_waits, 2) as group:
        (leader,), (follower, again) = group.reports()
    assert "call 1: rank 1 made open(100, 101, 70, 6, -1) after 0 steps, rank 0 made" in follower
    assert again == follower
    assert leader.startswith("WrongState: rank 1 ")
    assert "rank 1 made open(100, 101, 70, 6, -1) after 0 steps, rank 0 made" in leader


def abort_on_one_rank(place: RankPlace) -> str:
    with Sidecar(small_config(), place) as sidecar:
        sequence = sidecar.open(10, 10)
        sidecar.begin_step([(sequence, 4)], "prefill")
        for layer in range(3):
            sidecar.run_layer(layer, random_rows(sidecar.config, layer, 4, 1))
        if place.rank == 1:
            found = error_of(sidecar.abort_step)
            assert not sidecar.has_open_step
            return found
        sidecar.commit_step()
        return error_of(sidecar.begin_step, [(sequence, 1)], "decode")


def test_a_step_aborted_by_one_rank_alone_is_an_error_on_every_rank() -> None:
    with Group(abort_on_one_rank, 2) as group:
        for found in group.reports():
            assert found.startswith("WrongState: call 3: rank 1 made truncate(")
            assert "rank 0 made append(" in found


def other_shape(place: RankPlace) -> str:
    config = small_config(host_pages=32 if place.rank == 1 else 64)
    return error_of(share_of, place, config)


def test_ranks_of_another_shape_are_not_let_in() -> None:
    with Group(other_shape, 2) as group:
        leader, follower = group.reports()
    assert leader == "InvalidArgument: host_pages is 32 on rank 1, 64 on rank 0"
    assert follower.startswith("TierDown: rank 0 has sent rank 1 away")


def missing_rank(place: RankPlace) -> str:
    if place.rank == 2:
        return ""
    with pytest.raises(HisparseError) as caught:
        share_of(place, small_config())
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_rank_that_does_not_join_is_named() -> None:
    with Group(missing_rank, 3, join_seconds=4.0) as group:
        leader, follower, _ = group.reports()
    assert leader == "DeadlinePassed: 1 of 2 ranks have joined rank 0 in 4 s, ranks 2 are needed"
    assert follower.split(":")[0] in ("DeadlinePassed", "TierDown")


def test_halves_of_calls_that_no_other_rank_would_make_are_refused(tmp_path: Path) -> None:
    with Sidecar(small_config(), RankPlace(0, 1, tmp_path / "ranks")) as sidecar:
        sequence = sidecar.open(8, 0)
        with pytest.raises(WrongState, match="shared by ranks"):
            sidecar.make_room_to_fork(0, 8, 1.0)
        with pytest.raises(WrongState, match="shared by ranks"):
            sidecar.fork_at_once(sequence, 0, 8)
        with pytest.raises(WrongState, match="shared by ranks"):
            sidecar.bring_back(sequence, 1.0)
