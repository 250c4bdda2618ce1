"""Run suites, write their rows, and show them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from hisparse_sidecar.cli import output
from hisparse_sidecar.cli.bench.environment import find_environment
from hisparse_sidecar.cli.bench.plot import plot_rows
from hisparse_sidecar.cli.bench.rows import (
    Measurement,
    Row,
    make_row,
    results_file,
    write_rows,
)
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch

_COLUMNS = ("case", "metric", "ours")
_PEER_COLUMNS = ("peer", "peer_value", "ratio")
_WHOLE_FROM = 1000


@dataclass(frozen=True)
class Results:
    """Where rows go: a folder, whether files start over, whether they are drawn."""

    folder: Path
    replace: bool
    plot: bool


@dataclass(frozen=True)
class BenchReport:
    """What was measured, and the files that hold it."""

    rows: list[Row]
    files: list[Path]

    def to_json(self) -> dict[str, object]:
        """The one object of `hisparse bench --json`."""
        rows = [asdict(row) for row in self.rows]
        return {"rows": rows, "files": [str(path) for path in self.files]}

    def tables(self) -> Iterator[Table]:
        """One table for each suite."""
        for suite in dict.fromkeys(row.suite for row in self.rows):
            rows = [row for row in self.rows if row.suite == suite]
            yield _rows_table(f"{suite}, on {rows[0].gpu}", rows)


@dataclass(frozen=True)
class SuiteList:
    """The suites that can be run."""

    suites: Sequence[Suite]

    def to_json(self) -> dict[str, object]:
        """The one object of `hisparse bench --list --json`."""
        keys = ("name", "summary", "device")
        return {"suites": [{key: getattr(suite, key) for key in keys} for suite in self.suites]}

    def tables(self) -> Iterator[Table]:
        """One table."""
        table = output.simple_table("benchmark suites", "suite", "runs on", "measures")
        for suite in self.suites:
            table.add_row(suite.name, suite.device, suite.summary)
        yield table


def run_suites(suites: Iterable[Suite], stopwatch: Stopwatch, results: Results) -> BenchReport:
    """Measure suite after suite; each suite's rows are on disk before the next one starts."""
    rows: list[Row] = []
    files: list[Path] = []
    for suite in suites:
        environment = find_environment(suite.device, results.folder)
        measured = [
            make_row(suite.name, measurement, environment)
            for measurement in _watch(suite, stopwatch)
        ]
        path = results_file(results.folder, suite.name, environment.gpu)
        held = write_rows(path, measured, replace=results.replace)
        files.append(path)
        if results.plot:
            files.append(path.with_suffix(".png"))
            plot_rows(held, files[-1])
        rows += measured
    return BenchReport(rows, files)


def _watch(suite: Suite, stopwatch: Stopwatch) -> Iterator[Measurement]:
    with output.progress_console().status(f"{suite.name}: starting") as status:
        for measurement in suite.measure(stopwatch):
            shown = f"{measurement.case}: {measurement.metric} = {measurement.ours:.4g}"
            status.update(f"{suite.name}: {shown}")
            yield measurement


def _rows_table(title: str, rows: list[Row]) -> Table:
    has_peer = any(row.peer for row in rows)
    columns = _COLUMNS + (_PEER_COLUMNS if has_peer else ())
    table = output.simple_table(title, *columns)
    for row in rows:
        table.add_row(*(_shown(getattr(row, column)) for column in columns))
    return table


def _shown(text: str) -> str:
    """Numbers short and without exponent; other text as it is."""
    try:
        number = float(text)
    except ValueError:
        return text
    return f"{number:,.0f}" if abs(number) >= _WHOLE_FROM else f"{number:.4g}"
