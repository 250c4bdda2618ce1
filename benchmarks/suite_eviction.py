"""Suite `eviction`: what the policies of a tier would hit, by its capacity.

Zipf, conversations and scans are seeded; `files` is recorded, see `benchmarks/eviction/record.py`:
the files that a run of the command line's tests opened. Hit rates are the same on every machine,
times are not. LRU is the peer of the other two.
"""

import tempfile
from collections.abc import Iterator

from benchmarks.cargo_runs import ROOT, Line, bench_lines, wanted
from benchmarks.eviction.plot import HIT_RATE, plot_hit_rates
from benchmarks.eviction.record import read_requests
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch

_PEER = "lru"
_KEYS = ("hit_rate", "ns_per_request")


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    yield from wanted(stopwatch, to_measurements(_lines()))


def _lines() -> Iterator[Line]:
    yield from bench_lines("eviction")
    for recorded in sorted((ROOT / "benchmarks" / "traces").glob("*.csv.gz")):
        with tempfile.NamedTemporaryFile("w", suffix=".csv") as trace:
            trace.writelines(f"{request}\n" for request in read_requests(recorded))
            trace.flush()
            name = recorded.name.removesuffix(".csv.gz")
            for line in bench_lines("eviction", trace.name):
                yield line | {"trace": f"{line['trace']}: {name}"}


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
