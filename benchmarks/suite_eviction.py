"""Suite `eviction`: what the policies of a tier would hit, by its capacity.

Traces are seeded, so hit rates are the same on every machine; times are not. LRU is the peer of the
other two. A recorded trace is a file of `sequence id,page id,parent`, see `benchmarks/traces`.
"""

from collections.abc import Iterator

from benchmarks.cargo_runs import ROOT, Line, bench_lines
from benchmarks.eviction.plot import HIT_RATE, plot_hit_rates
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch

_PEER = "lru"
_KEYS = ("hit_rate", "ns_per_request")


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    yield from _of_lines(bench_lines("eviction"), stopwatch)
    for trace in sorted((ROOT / "benchmarks" / "traces").glob("*.csv")):
        yield from _of_lines(bench_lines("eviction", str(trace)), stopwatch)


def _of_lines(lines: Iterator[Line], stopwatch: Stopwatch) -> Iterator[Measurement]:
    for measurement in to_measurements(lines):
        if stopwatch.wants(measurement.case):
            yield measurement


def to_measurements(lines: Iterator[Line]) -> Iterator[Measurement]:
    """Hit rates and times of every policy; LRU's line of a trace and capacity stands first."""
    lru: Line = {}
    for line in lines:
        is_lru = line["policy"] == _PEER
        lru = line if is_lru else lru
        peer = "" if is_lru else _PEER
        case = f"{line['trace']}, {line['capacity_pages']} pages, {line['policy']}"
        peer_rate, peer_ns = (None if is_lru else lru[key] for key in _KEYS)
        rate, nanoseconds = (line[key] for key in _KEYS)
        yield Measurement(case, HIT_RATE, rate, "higher", peer, peer_rate)
        yield Measurement(case, "ns a request", nanoseconds, "lower", peer, peer_ns)


SUITE = Suite(
    name="eviction",
    summary="hit rates of LRU, S3-FIFO and leaf-first by trace and capacity",
    device="cpu",
    measure=_measure,
    plot=plot_hit_rates,
)
