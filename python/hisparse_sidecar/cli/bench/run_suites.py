"""Run suites, write their rows, and show them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from hisparse_sidecar.cli import output
from hisparse_sidecar.cli.bench.environment import find_environment
from hisparse_sidecar.cli.bench.rows import (
    Measurement,
    Row,
    make_row,
    read_rows,
    results_file,
    write_rows,
)
from hisparse_sidecar.cli.bench.suite import Suite, choose_suites
from hisparse_sidecar.cli.bench.timing import Stopwatch

_COLUMNS = ("case", "metric", "ours")
_PEER_COLUMNS = ("peer", "peer_value", "ratio")
_SPREAD_COLUMNS = ("ratio_p10", "ratio_p90")
_WHOLE_FROM = 1000


@dataclass(frozen=True)
class Results:
    """Where rows go, and what they say of the code.

    Attributes:
        folder: of the CSV files.
        replace: whether files start over.
        plot: whether they are drawn.
        checkout: folder in the repository whose commit the rows name.
    """

    folder: Path
    replace: bool
    plot: bool
    checkout: Path


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
    """Measure suite after suite. A row is on disk before the next one is measured.

    So a suite that is interrupted, killed or crashes leaves the rows that it had.
    """
    rows: list[Row] = []
    files: list[Path] = []
    for suite in suites:
        environment = find_environment(suite.device, results.checkout)
        path = results_file(results.folder, suite.name, environment.gpu)
        held: list[Row] = []
        for number, measurement in enumerate(_watch(suite, stopwatch)):
            rows.append(make_row(suite.name, measurement, environment))
            held = write_rows(path, rows[-1:], replace=results.replace and number == 0)
        if held:
            files.append(path)
        if results.plot:
            files.append(path.with_suffix(".png"))
            suite.plot(held, files[-1])
    return BenchReport(rows, files)


def draw_files(suites: Mapping[str, Suite], files: Iterable[Path]) -> BenchReport:
    """Draw results files as PNGs beside them; measures nothing.

    Raises:
        ValueError: a file holds no rows, or rows of a suite that is not known.
    """
    rows: list[Row] = []
    drawn: list[Path] = []
    for path in files:
        held = read_rows(path)
        if not held:
            raise ValueError(f"{path}: 0 rows to draw, at least 1 needed")
        (suite,) = choose_suites(suites, [held[0].suite])
        drawn.append(path.with_suffix(".png"))
        suite.plot(held, drawn[-1])
        rows += held
    return BenchReport(rows, drawn)


def _watch(suite: Suite, stopwatch: Stopwatch) -> Iterator[Measurement]:
    with output.progress_console().status(f"{suite.name}: starting") as status:
        for measurement in suite.measure(stopwatch):
            shown = f"{measurement.case}: {measurement.metric} = {measurement.ours:.4g}"
            status.update(f"{suite.name}: {shown}")
            yield measurement


def _rows_table(title: str, rows: list[Row]) -> Table:
    has_peer = any(row.peer for row in rows)
    has_spread = any(row.ratio_p10 for row in rows)
    columns = _COLUMNS + _PEER_COLUMNS * has_peer + _SPREAD_COLUMNS * has_spread
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
