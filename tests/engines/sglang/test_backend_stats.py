"""What a coordinator tells of its offload: numbers that another count agrees with."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hisparse_sidecar.engine_stats import EngineRequests, EngineStats, SelectionCalls, StatsFolder
from hisparse_sidecar.engines.sglang import offload_start
from hisparse_sidecar.engines.sglang.calls import CallCounts
from hisparse_sidecar.engines.sglang.offload import stats as offload_stats
from hisparse_sidecar.engines.sglang.offload.stats import StatsLine, StatsPublisher, line_of
from tests.engines.sglang.offload_world import HOT, LAYERS, PAGE, ROW_BYTES, TOPK, Engine
from tests.engines.sglang.prefix_world import CachingEngine, prompt

ROW = ROW_BYTES["bf16"]


class Listener:
    """Keeps what it is told, and fails when it is to."""

    def __init__(self) -> None:
        self.told: list[EngineStats] = []
        self.is_closed = self.fails = False

    def tell(self, stats: EngineStats) -> None:
        if self.fails:
            raise OSError("no space left")
        self.told.append(stats)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def make(sglang: None) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make_one(**named: Any) -> Engine:
        made.append(Engine(**named))
        return made[-1]

    yield make_one
    for engine in made:
        engine.coordinator.destroy()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Seconds that pass when a test says so."""
    made = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(offload_stats, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def test_stats_are_those_of_a_life(make: Callable[..., Engine]) -> None:
    engine = make(hot_share=0.08, shared_index_layers=[False, True, False])  # two hot buffers
    first, second = engine.start(300, 500, new_tokens=100)
    engine.admit(engine.prefill(200))
    for _ in range(20):
        slots = engine.prepare()
        lengths = [req.kv.kv_allocated_len for req in engine.running]
        shared, own = engine.lists(lengths), engine.lists(lengths)
        engine.forward(slots, [shared, shared, own].__getitem__, padding=1)
    counts = CallCounts()
    for outcome in ("selected", "no rows", "selected"):
        counts.add("paged", outcome)
    engine.coordinator.selections.append(counts)
    found = engine.coordinator.stats()
    assert found.requests == EngineRequests(waiting=1, copying=0, decoding=2)
    assert (found.steps, found.refused, found.rank) == (20, 0, 0)
    assert found.rows_asked == 2 * 20 * 2 * TOPK  # groups, steps, requests
    assert 0 < found.rows_missed < found.rows_asked
    layers = (2, 1)
    rows = 300 + 500 + 2 * 20
    for group, count in zip(found.groups, layers, strict=True):
        assert group.rows.bytes_in == group.rows.misses * ROW * count
        assert group.spilled_bytes == rows * ROW * count
    assert found.bytes_spilled == rows * ROW * LAYERS
    assert found.held.hot_buffer == 2 * HOT * ROW * LAYERS
    pages = -(-402 // PAGE) - (-602 // PAGE)
    assert found.held.host == pages * PAGE * ROW * LAYERS
    assert found.core.host_pages_total - found.core.host_pages_free == pages
    assert found.prompt_rows_total - found.prompt_rows_free == 256  # the prompt that waits
    assert found.selections == (
        SelectionCalls("paged", "selected", 2),
        SelectionCalls("paged", "no rows", 1),
    )
    for req in (first, second):
        engine.finish(req)
    assert engine.coordinator.stats().requests.decoding == 0


def test_pages_of_the_prefix_cache_are_told_apart(caching: Callable[..., CachingEngine]) -> None:
    engine = caching()
    engine.finish(*engine.start_tokens(prompt(300), new_tokens=100))
    engine.start_tokens([*prompt(300), 1], new_tokens=100)
    found = engine.coordinator.stats()
    assert found.core.host_pages_leased == 4
    assert "; host pages 7 of" in line_of(found, None)  # 301 + 102 tokens
    assert f"of {found.core.host_pages_total}, 4 cached; " in line_of(found, None)
    assert found.held.host == 7 * PAGE * ROW * LAYERS
    engine.finish(*engine.running)
    assert ", 4 cached; " in line_of(engine.coordinator.stats(), None)


def test_they_are_told_once_a_second_and_not_before(
    make: Callable[..., Engine], clock: Any
) -> None:
    listener = Listener()
    engine = make(listeners=(listener,))
    engine.start(300)
    engine.decode(3)
    assert [one.steps for one in listener.told] == [0]  # when the first request was collected
    for after, steps in ((0.9, [0]), (0.1, [0, 3]), (0.5, [0, 3]), (0.5, [0, 3, 3])):
        clock.now += after
        engine.collect()
        assert [one.steps for one in listener.told] == steps
    assert listener.told[-1].rows_asked == 3 * 3 * TOPK
    engine.coordinator.destroy()
    assert listener.is_closed
    clock.now += 10


def test_a_reading_that_is_on_its_way_is_told_when_it_has_come(
    make: Callable[..., Engine], clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    engine = make(listeners=(listener,))
    reading = engine.coordinator.begin_reading()
    monkeypatch.setattr(type(reading), "is_ready", False)
    engine.collect()
    clock.now += 5
    engine.collect()
    assert listener.told == []
    monkeypatch.setattr(type(reading), "is_ready", True)
    engine.collect()
    assert len(listener.told) == 1


def test_a_listener_that_fails_does_not_reach_the_scheduler(
    make: Callable[..., Engine], clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener()
    engine, listener.fails = make(listeners=(listener,)), True
    for _ in range(3):
        clock.now += 1
        assert engine.collect() == []
    assert [text for text in caplog.messages if "statistics" in text] == [
        "hisparse: statistics are not told"
    ]
    listener.fails = False
    clock.now += 1
    engine.collect()
    assert len(listener.told) == 1


def test_a_line_says_what_has_happened_since_the_last(
    make: Callable[..., Engine], clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="hisparse_sidecar.sglang")
    engine, line = make(), StatsLine()

    def tell() -> list[str]:
        line.tell(engine.coordinator.stats())
        return [text for text in caplog.messages if " steps, " in text]

    engine.start(300)
    assert tell() == []
    engine.decode(2)
    before = engine.coordinator.stats()
    (first,) = tell()
    assert first == f"hisparse: {line_of(before, None)}"
    engine.decode(5)
    clock.now += 9.9
    assert tell() == [first]
    clock.now += 0.1
    now = engine.coordinator.stats()
    assert tell() == [first, f"hisparse: {line_of(now, before)}"]
    clock.now += 100
    assert len(tell()) == 2  # no step since
    hit = 1 - (now.rows_missed - before.rows_missed) / (3 * 5 * TOPK)
    assert line_of(now, before).startswith(f"5 steps, {3 * 5 * TOPK} rows asked, {hit:.2%} hit; ")
    assert "1 decode, 0 copy, 0 wait" in line_of(now, before)


def test_snapshots_are_published_and_withdrawn(make: Callable[..., Engine], tmp_path: Path) -> None:
    folder = StatsFolder("engine", tmp_path)
    engine = make(listeners=(StatsPublisher(folder),))
    engine.collect()
    (found,) = folder.read()
    assert found.stats.core.as_dict() == engine.coordinator.stats().core.as_dict()
    engine.coordinator.destroy()
    assert folder.read() == []


@pytest.mark.parametrize(("port", "kinds"), [(None, 1), (30001, 2)])
def test_snapshots_are_published_where_sglang_serves_grpc(port: int | None, kinds: int) -> None:
    listeners = offload_start._listeners(SimpleNamespace(grpc_port=port))
    assert [type(one) for one in listeners] == [StatsLine, StatsPublisher][:kinds]
    assert offload_stats.folder_of(30001).path.name == "sglang-30001"
