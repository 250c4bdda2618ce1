"""Suite `tiers`: the file tier's spills and restores beside plain calls and `dd`; a recovery.

Rates are medians of rounds in which all sides take turns; what is durable counts, and what is read
is cold. Pages are written to the build folder's disk, 10 GiB of them for the recovery.

The plain peer makes as many `pwrite` or `pread` of the same size from as many threads, and the same
syncs; it reads the tier's own files. `dd` is one thread.
"""

from collections.abc import Iterator
from statistics import median

from benchmarks.cargo_runs import Line, bench_lines, wanted
from benchmarks.ops.spread import ratio_spread
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    for line in bench_lines("file_tier"):
        yield from wanted(stopwatch, to_measurements(line))


def to_measurements(line: Line) -> Iterator[Measurement]:
    """What one line of the benchmark `file_tier` says."""
    case = f"{line['case']}, pages of {line['page_bytes'] / 1024:,.0f} KiB"
    if line["case"] == "recovery":
        case += f", {line['pages']} pages in {line['segments']} segments"
        yield Measurement(case, "s", line["seconds"], "lower")
        yield Measurement(case, "segments scanned", line["scanned"], "lower")
        return
    for name, peer in _peers(line).items():
        spread = ratio_spread(peer, line["gb_per_s"])  # it is made for times
        ours = median(line["gb_per_s"])
        yield Measurement(case, "median GB/s", ours, "higher", name, median(peer), spread)


def _peers(line: Line) -> dict[str, list[float]]:
    plain = "plain pwrite" if line["case"] == "spill" else "plain pread"
    return {plain: line["plain_gb_per_s"], "dd": line["dd_gb_per_s"]}


SUITE = Suite(
    name="tiers",
    summary="the file tier's spill and restore (GB/s), beside pread and dd; recovery of 10 GiB",
    device="cpu",
    measure=_measure,
)
