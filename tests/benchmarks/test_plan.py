"""The suite `plan` at its smallest, on the CPU."""

from benchmarks.suite_plan import measure_on
from hisparse_sidecar.cli.bench.timing import Stopwatch


def test_every_case_has_a_time_and_a_name_of_its_own() -> None:
    rows = list(measure_on("cpu", Stopwatch(0, 1), batches=(2,)))
    assert len({(row.case, row.metric) for row in rows}) == len(rows) == 16
    assert all(row.ours > 0 for row in rows)
    assert sum("run, 2 sequences" in row.case for row in rows) == 4
