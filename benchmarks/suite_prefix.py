"""Suite `prefix`: page operations of the directory, in millions a second, by order and prefix.

An operation is one page matched, taken, or given back; `rust/core/benches/prefix_ops.rs` says what
each case does. Medians of rounds, and the slowest round.
"""

from collections.abc import Iterator
from statistics import median

from benchmarks.cargo_runs import Line, bench_lines, wanted
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    for line in bench_lines("prefix_ops"):
        yield from wanted(stopwatch, to_measurements(line))


def to_measurements(line: Line) -> Iterator[Measurement]:
    """Rates of one case."""
    threads = "thread" if line["threads"] == 1 else "threads"
    place = f"{line['prefix_pages']} pages, {line['threads']} {threads}, {line['order']}"
    case = f"{line['case']}, {place}"
    rates = line["millions_per_second"]
    yield Measurement(case, "median M page ops/s", median(rates), "higher")
    yield Measurement(case, "slowest M page ops/s", min(rates), "higher")


SUITE = Suite(
    name="prefix",
    summary="page operations of prefixes a second, one thread and two",
    device="cpu",
    measure=_measure,
)
