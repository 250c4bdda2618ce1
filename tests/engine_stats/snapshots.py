"""Snapshots for tests: every number another one."""

from itertools import count

from hisparse_sidecar._core import Stats
from hisparse_sidecar.engine_stats import EngineRequests, EngineStats, SelectionCalls
from hisparse_sidecar.stats import GroupTraffic, SelectionCounts, TierBytes, Traffic

_CORE = [name for name in dir(Stats) if name[0] != "_" and not callable(getattr(Stats, name))]


def make_stats(first: int = 1, *, rank: int = 0) -> EngineStats:
    """Numbers count from `first`."""
    numbers = count(first)

    def some(how_many: int) -> list[int]:
        return [next(numbers) for _ in range(how_many)]

    def group() -> GroupTraffic:
        rows, blocks, prefill = (Traffic(*some(4)) for _ in range(3))
        return GroupTraffic(rows, blocks, prefill, *some(2), SelectionCounts(*some(8)))

    return EngineStats(
        engine="sglang 0.5.23",
        rank=rank,
        core=Stats.from_dict(dict(zip(_CORE, some(len(_CORE)), strict=True))),
        groups=(group(), group()),
        held=TierBytes(*some(6)),
        steps=next(numbers),
        refused=next(numbers),
        requests=EngineRequests(*some(3)),
        prompt_rows_total=next(numbers),
        prompt_rows_free=next(numbers),
        selections=(SelectionCalls("paged", "selected", next(numbers)),),
    )


def plain(stats: EngineStats) -> dict[str, object]:
    """A snapshot that can be compared: the core's numbers have no equality."""
    return vars(stats) | {"core": stats.core.as_dict()}
