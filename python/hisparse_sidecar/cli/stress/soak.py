"""What a server does over time, for it may lose nothing and yet grow: the report, and the verdict.

The first third of each server's life, and at least its first minute, is warm-up: memory is touched,
threads are made, tables and tiers fill up. A server whose rest is shorter than a minute is not
measured. Times and rates are reported; only what grows without end, or is never given back, fails.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from statistics import median
from typing import Any

from hisparse_sidecar.cli.stress.sampler import INTERVAL_SECONDS, Opening, Sample
from hisparse_sidecar.cli.stress.trends import LEAST_VALUES, grows, ratio_with_error, slope

MOST_LEASE_SECONDS = 60.0
_WARM_UP_SHARE, _LEAST_SECONDS = 1 / 3, 60.0
_LEAST_OPENINGS = 20  # of half a run
_MIB, _HOUR_SECONDS = 1 << 20, 3600.0
_Openings = Sequence[Opening]


def to_json(samples: Sequence[Sample], openings: _Openings) -> dict[str, Any]:
    """The object "soak" of a report.

    Args:
        samples: of the servers, in order.
        openings: of prompts, in order.

    Returns:
        "servers" has the measured ones; drifts are None where too little was opened.
    """
    servers = [_server(list(seen)) for _, seen in groupby(samples, lambda seen: seen.generation)]
    halves = _halves(openings, samples[-1].seconds if samples else 0.0)
    return {
        "interval_seconds": INTERVAL_SECONDS,
        "samples": len(samples),
        "servers": [server for server in servers if server is not None],
        "oldest_lease_seconds": round(oldest_lease_seconds(samples), 1),
        "hit_rate": None if halves is None else _hit_rate(*halves),
        "open_p50_us": None if halves is None else _open_times(*halves),
    }


def leaks(soak: dict[str, Any]) -> Iterator[str]:
    """What must not be, in words; `soak` as `to_json` gives it."""
    for server in soak["servers"]:
        for kind in ("fds", "threads"):
            if server[kind]["grew"]:
                least, most = server[kind]["min"], server[kind]["max"]
                what = f"{kind} of server {server['generation']} grow, from {least} to {most}"
                yield f"{what} within {server['measured_seconds']:.0f} s"
    oldest = soak["oldest_lease_seconds"]
    if oldest >= MOST_LEASE_SECONDS:
        yield f"leases for {oldest:.0f} s without a break, must be < {MOST_LEASE_SECONDS:.0f} s"


def longest(soak: dict[str, Any]) -> dict[str, Any] | None:
    """Of the measured servers the one that was measured for longest; None without any."""
    measured: list[dict[str, Any]] = soak["servers"]
    return max(measured, key=lambda server: server["measured_seconds"], default=None)


def oldest_lease_seconds(samples: Sequence[Sample]) -> float:
    """The longest time without a moment at which nothing was leased: no lease is older."""
    oldest = free_at = 0.0
    generation = -1
    for seen in samples:
        if not seen.num_leases or seen.generation != generation:
            generation, free_at = seen.generation, seen.seconds
        oldest = max(oldest, seen.seconds - free_at)
    return oldest


def _server(seen: list[Sample]) -> dict[str, Any] | None:
    began, ended = seen[0].seconds, seen[-1].seconds
    warm_up = max(_WARM_UP_SHARE * (ended - began), _LEAST_SECONDS)
    rest = [sample for sample in seen if sample.seconds >= began + warm_up]
    if ended - began - warm_up < _LEAST_SECONDS or len(rest) < LEAST_VALUES:
        return None
    return {
        "generation": seen[0].generation,
        "warm_up_seconds": round(warm_up, 1),
        "measured_seconds": round(ended - began - warm_up, 1),
        "rss_mib": _memory(rest, lambda one: one.footprint.rss_bytes),
        "anonymous_mib": _memory(rest, lambda one: one.footprint.anonymous_bytes),
        "malloc_mib": _memory(rest, lambda one: one.malloc_bytes),
        "fds": _number([one.footprint.num_fds for one in rest]),
        "threads": _number([one.footprint.num_threads for one in rest]),
        "pages": {
            name: {"first": rest[0].num_pages[name], "last": rest[-1].num_pages[name]}
            for name in sorted(rest[0].num_pages)
        },
    }


def _memory(seen: list[Sample], of: Callable[[Sample], int | None]) -> dict[str, float] | None:
    sizes = [num_bytes / _MIB for num_bytes in map(of, seen) if num_bytes is not None]
    if len(sizes) < len(seen):
        return None
    found = slope([sample.seconds for sample in seen], sizes)
    return {
        "min": round(min(sizes), 2),
        "max": round(max(sizes), 2),
        "slope_per_hour": round(_HOUR_SECONDS * found.per_second, 2),
        "slope_error": round(_HOUR_SECONDS * found.error, 2),
    }


def _number(found: list[int]) -> dict[str, Any]:
    return {"min": min(found), "max": max(found), "grew": grows(found)}


def _halves(openings: _Openings, seconds: float) -> tuple[_Openings, _Openings] | None:
    warm_up = max(_WARM_UP_SHARE * seconds, _LEAST_SECONDS)
    middle = (warm_up + seconds) / 2
    first = [one for one in openings if warm_up <= one.seconds < middle]
    last = [one for one in openings if middle <= one.seconds]
    return (first, last) if min(len(first), len(last)) >= _LEAST_OPENINGS else None


def _hit_rate(first: _Openings, last: _Openings) -> dict[str, Any]:
    (before, error), (after, later_error) = _found_share(first), _found_share(last)
    return {
        "first_half": round(before, 4),
        "last_half": round(after, 4),
        "drift_points": round(100 * (after - before), 2),
        "drift_error": round(100 * (error**2 + later_error**2) ** 0.5, 2),
        "openings": len(first) + len(last),
    }


def _found_share(half: _Openings) -> tuple[float, float]:
    return ratio_with_error([one.found_pages for one in half], [one.asked_pages for one in half])


def _open_times(first: _Openings, last: _Openings) -> dict[str, float]:
    before, after = (median(one.took_us for one in half) for half in (first, last))
    return {
        "first_half": round(before, 1),
        "last_half": round(after, 1),
        "drift_percent": round(100 * (after / before - 1), 2),
    }
