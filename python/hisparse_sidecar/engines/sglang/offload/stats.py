"""What the offload of a scheduler holds and has done, told now and then."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from hisparse_sidecar.engine_rows import EngineRowsConfig, EngineRowTier
from hisparse_sidecar.engine_rows.counters import CounterReading, GroupCounts
from hisparse_sidecar.engine_stats import EngineRequests, EngineStats, SelectionCalls, StatsFolder
from hisparse_sidecar.engines.sglang.calls import CallCounts
from hisparse_sidecar.engines.sglang.offload.staging import StagedRequest
from hisparse_sidecar.engines.sglang.versions import installed_versions
from hisparse_sidecar.stats import GroupTraffic, TierBytes, Traffic

_LOG = logging.getLogger("hisparse_sidecar.sglang")
TELL_SECONDS = 1.0
LOG_SECONDS = 10.0
_NONE = 0  # no handle of the core's is 0
_MIB = 1 << 20


class Coordinator(Protocol):
    """What is asked of a coordinator."""

    tier: EngineRowTier
    selections: list[CallCounts]
    rank: int
    token_to_kv_pool_allocator: Any

    @property
    def prompt_rows(self) -> int: ...  # noqa: D102

    @property
    def ack_staging_queue(self) -> list[StagedRequest]: ...  # noqa: D102

    def begin_reading(self) -> CounterReading: ...  # noqa: D102


class Listener(Protocol):
    """Who is told what offload holds and has done."""

    def tell(self, stats: EngineStats) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


class StatsReporter:
    """Brings the device's counters to the host now and then, without a wait, and tells of them.

    Nothing that goes wrong in it reaches the scheduler: the first of several failures is logged.
    """

    def __init__(self, coordinator: Coordinator, listeners: Sequence[Listener]) -> None:
        """A reporter that has told nothing yet.

        Args:
            coordinator: whose offload.
            listeners: who is told.
        """
        self._coordinator, self._listeners = coordinator, tuple(listeners)
        self._reading: CounterReading | None = None
        self._due, self._has_failed = 0.0, False

    def tick(self) -> None:
        """Between two steps of the scheduler: tells what has come, and asks again when due."""
        if not self._listeners or (self._reading is None and time.monotonic() < self._due):
            return
        with self._kept_from_scheduler():
            if self._reading is None:
                self._reading = self._coordinator.begin_reading()
            if self._reading.is_ready:
                counts, self._reading = self._reading.counts(), None
                self._due = time.monotonic() + TELL_SECONDS
                stats = stats_of(self._coordinator, counts)
                for listener in self._listeners:
                    listener.tell(stats)
                self._has_failed = False

    def close(self) -> None:
        """Tells no more."""
        listeners, self._listeners = self._listeners, ()
        for listener in listeners:
            with self._kept_from_scheduler():
                listener.close()

    @contextmanager
    def _kept_from_scheduler(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._reading, self._due = None, time.monotonic() + TELL_SECONDS
            if not self._has_failed:
                self._has_failed = True
                _LOG.exception("hisparse: statistics are not told")


class StatsLine:
    """Logs what has happened since the last line, if a step has, on the first rank."""

    def __init__(self) -> None:
        self._last: EngineStats | None = None
        self._due = 0.0

    def tell(self, stats: EngineStats) -> None:
        """Logs a line where it is due."""
        now, before = time.monotonic(), self._last
        has_stepped = stats.steps > (before.steps if before else 0)
        if stats.rank or now < self._due or not has_stepped:
            return
        self._last, self._due = stats, now + LOG_SECONDS
        _LOG.info("hisparse: %s", line_of(stats, before))

    def close(self) -> None:
        """Nothing is to be undone."""


class StatsPublisher:
    """Writes snapshots where the gRPC server beside SGLang finds them."""

    def __init__(self, folder: StatsFolder) -> None:
        self._folder = folder

    def tell(self, stats: EngineStats) -> None:
        """Writes a snapshot; the errors are those of `StatsFolder.publish`."""
        self._folder.publish(stats)

    def close(self) -> None:
        """Removes it."""
        self._folder.withdraw()


def folder_of(grpc_port: int) -> StatsFolder:
    """Where the schedulers of an SGLang that has this `--grpc-port` publish."""
    return StatsFolder(f"sglang-{grpc_port}")


def line_of(stats: EngineStats, before: EngineStats | None) -> str:
    """One line: what has happened since `before` (None = the start), and what is held now."""

    def since(name: str) -> int:
        return int(getattr(stats, name)) - (int(getattr(before, name)) if before else 0)

    asked, core, requests = since("rows_asked"), stats.core, stats.requests
    hit = f"{1 - since('rows_missed') / asked:.2%}" if asked else "none"
    used = core.host_pages_total - core.host_pages_free
    parts = [
        f"{since('steps')} steps, {asked} rows asked, {hit} hit",
        f"{since('bytes_in') / _MIB:.1f} MiB in, {since('bytes_spilled') / _MIB:.1f} MiB out",
        f"{requests.decoding} decode, {requests.copying} copy, {requests.waiting} wait",
        f"host pages {used} of {core.host_pages_total}, {core.host_pages_leased} cached",
        f"rows for prompts {stats.prompt_rows_free} free of {stats.prompt_rows_total}",
    ]
    if stats.refused:
        parts.append(f"{stats.refused} LOOKUPS REFUSED")
    return "; ".join(parts)


def stats_of(coordinator: Coordinator, counts: Sequence[GroupCounts]) -> EngineStats:
    """A snapshot of a coordinator's offload.

    Args:
        coordinator: between two steps.
        counts: of the device, of each group of layers.
    """
    tier, staged = coordinator.tier, coordinator.ack_staging_queue
    core, config = tier.stats(), tier.config
    copying = sum(one.sequence != _NONE for one in staged)
    # a pool that ranks share is told of once, by the rank that writes it
    host_pages, spilled = core.host_pages_total - core.host_pages_free, core.appended_tokens
    if not tier.writes_host:
        host_pages = spilled = 0
    free = coordinator.token_to_kv_pool_allocator.hisparse_attn_allocator
    host_page_bytes = config.host_layout().num_bytes // config.host_pages
    return EngineStats(
        engine=f"sglang {installed_versions().sglang}",
        rank=coordinator.rank,
        core=core,
        groups=tuple(_traffic(config, group, one, spilled) for group, one in enumerate(counts)),
        held=TierBytes(
            hot_buffer=core.slots_used * config.row_bytes * len(config.groups),
            block_window=0,
            pooled_keys=0,
            hot_tables=tier.table_bytes(core),
            window_tables=0,
            host=host_pages * host_page_bytes,
        ),
        steps=tier.num_steps,
        refused=sum(one.refused for one in counts),
        requests=EngineRequests(len(staged) - copying, copying, core.sequences - copying),
        prompt_rows_total=coordinator.prompt_rows,
        prompt_rows_free=free.available_size(),
        selections=_calls(coordinator.selections),
    )


def _traffic(
    config: EngineRowsConfig, group: int, counts: GroupCounts, spilled_tokens: int
) -> GroupTraffic:
    row_bytes = config.row_bytes * config.groups.count(group)
    rows = Traffic(counts.items, counts.misses, counts.misses * row_bytes)
    return GroupTraffic(rows=rows, spilled_bytes=spilled_tokens * row_bytes)


def _calls(selections: Sequence[CallCounts]) -> tuple[SelectionCalls, ...]:
    found = []
    for counts in selections:
        for name, count in counts.as_dict().items():
            kind, _, outcome = name.partition(": ")
            found.append(SelectionCalls(kind, outcome, count))
    return tuple(found)
