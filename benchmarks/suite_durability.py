"""Suite `durability`: the long tests of the file tier in full, and what they counted.

300 kills of a process that writes, and 10,000 mutations of its files; minutes. A test that fails
ends the suite: the counts that must be 0 are 0 in every results file.
"""

from collections.abc import Iterator
from typing import Literal

from benchmarks.cargo_runs import Line, test_lines
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch

_TESTS = {
    "kills": ("file_tier_kill", "no_kill_of_300_loses_an_acknowledged_page"),
    "corruptions": ("file_tier_corruption", "no_mutation_of_10_000_gives_a_wrong_byte"),
}
_TRIED = {"kills", "mutations", "pages_acknowledged", "pages_read", "misses"}  # not to be few


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    for case, (program, test) in _TESTS.items():
        if stopwatch.wants(case):
            for line in test_lines(program, test):
                yield from to_measurements(line)


def to_measurements(line: Line) -> Iterator[Measurement]:
    """One row for each count of a test."""
    for key, count in line.items():
        if key != "case":
            metric = key.replace("_", " ")
            better: Literal["higher", "lower"] = "higher" if key in _TRIED else "lower"
            yield Measurement(f"file tier, {line['case']}", metric, count, better)


SUITE = Suite(
    name="durability",
    summary="300 kills and 10,000 corruptions of the file tier: what was lost or wrong (minutes)",
    device="cpu",
    measure=_measure,
)
