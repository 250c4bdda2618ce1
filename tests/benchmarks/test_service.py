"""The suite of the server under load: each case at a small size, on a real server."""

import asyncio
import time

import pytest

from benchmarks import suite_service
from benchmarks.service import (
    drain,
    flood,
    full_disk,
    full_pool,
    many_sessions,
    slow_disk,
    slow_readers,
)
from benchmarks.service.callers import pace
from benchmarks.service.latency import share_rows
from hisparse_sidecar.cli.bench.timing import Stopwatch


def found(module: object, seconds: float = 0.5) -> dict[str, float]:
    return {one.metric: one.ours for one in module.measure(seconds)}  # type: ignore[attr-defined]


def test_a_full_pool_refuses_and_loses_nothing() -> None:
    rows = found(full_pool)
    assert rows["refusals/s"] > 0
    assert rows["refusals without a time to try again"] == rows["failed calls"] == 0
    assert rows["pages lost"] == 0


def test_a_full_disk_is_degraded_not_unhealthy_and_used_again() -> None:
    rows = found(full_disk)
    assert rows["health says serving meanwhile"] == 1
    assert rows["s until degraded"] > 0
    assert rows["s until it is used again"] > 0
    assert rows["pages lost of what came after"] == 0


def test_pages_come_from_a_disk_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_disk, "_COLD_PROMPTS", 20)
    (case,) = {one.case for one in slow_disk.measure(1.0)}
    assert case == slow_disk.CASE


def test_slow_readers_send_no_more_than_the_server_lets_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slow_readers, "_READERS", 3)
    rows = found(slow_readers)
    assert rows["failed calls"] == 0
    assert 0 < rows["KiB that a stream has sent, at most"] < 1024


def test_sessions_end_and_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_sessions, "_SESSIONS", 100)
    rows = found(many_sessions)
    assert rows["failed or refused calls"] == 0
    assert 2 <= rows["calls"] <= 200


def test_a_flood_finds_its_share_full_and_takes_no_hit_of_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flood, "_PER_SECOND", 10.0)  # 20 calls: their pages fit if none is answered
    monkeypatch.setattr(flood, "_LEAST_CALLS", 0)
    monkeypatch.setattr(flood, "_ROUNDS", 2)
    rows = found(flood, 2.0)
    assert (rows["calls"], rows["hit rate %"], rows["failed calls"]) == (20, 100, 0)
    assert rows["pages beyond its share, at most"] == 0
    assert rows["refusals/s"] > 0
    assert rows["server's CPU, % of a core"] > 0


@pytest.mark.parametrize(("seconds", "calls"), [(1.0, 2000), (60.0, 3000)])
def test_each_mode_has_calls_enough_for_a_steady_p99(seconds: float, calls: int) -> None:
    assert 10 * flood.seconds_of_a_round(seconds) * 50.0 == calls


def test_a_drain_saves_every_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "_DIRTY_BYTES", 40 << 20)
    monkeypatch.setattr(drain, "_BEFORE_SECONDS", 0.2)
    monkeypatch.setattr(drain, "_PER_SECOND", 100.0)
    rows = found(drain)
    assert rows["GB to save"] > 0.04
    assert rows["ms until health says so"] > 0
    assert rows["calls under way that failed"] == rows["pages not found again"] == 0


def test_cases_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float]] = []
    cases = {name: lambda seconds, name=name: asked.append((name, seconds)) or [] for name in "ab"}
    monkeypatch.setattr(suite_service, "_CASES", cases)
    assert list(suite_service.SUITE.measure(Stopwatch(0, 30, "b"))) == []
    assert asked == [("b", 60.0)]


def test_paced_calls_are_begun_when_due_whatever_those_before_do() -> None:
    begun: list[int] = []
    release = asyncio.Event()

    async def run() -> None:
        async def call(number: int, due: float) -> None:
            assert due <= time.perf_counter()
            begun.append(number)
            if number == 3:
                release.set()
            await release.wait()

        await asyncio.wait_for(pace(200.0, 0.02, call), 20.0)

    asyncio.run(run())
    assert begun == [0, 1, 2, 3]


def test_shares_of_durations_stand_beside_those_of_a_quiet_time() -> None:
    rows = list(share_rows("case", "open", [0.004, 0.002, 0.003], [0.001], "alone"))
    assert [(one.metric, one.ours, one.peer, one.peer_value) for one in rows] == [
        ("open, median ms", 3.0, "alone", 1.0),
        ("open, p99 ms", 4.0, "alone", 1.0),
    ]
    assert [one.peer for one in share_rows("case", "open", [0.001])] == ["", ""]
    with pytest.raises(ValueError, match="case: 0 calls of open, needs 1"):
        list(share_rows("case", "open", []))
