"""What a benchmark suite is, and how the suites of a folder are found.

A suite is a file `suite_NAME.py` that defines `SUITE`, a `Suite` of that name. To add one, add the
file.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hisparse_sidecar.cli.bench.plot import plot_rows
from hisparse_sidecar.cli.bench.rows import Measurement, Row
from hisparse_sidecar.cli.bench.timing import Stopwatch


@dataclass(frozen=True)
class Suite:
    """One family of measurements.

    Attributes:
        name: its name on the command line and in the rows.
        summary: one line: what it measures, on what, beside which peers.
        device: "cpu" or "cuda": what its numbers were made on, whatever else the machine has.
        measure: yields measurements while it runs.
        plot: draws the rows of its results file to a PNG.
    """

    name: str
    summary: str
    device: str
    measure: Callable[[Stopwatch], Iterator[Measurement]]
    plot: Callable[[list[Row], Path], None] = plot_rows


def load_suites(folder: Path) -> dict[str, Suite]:
    """Suites of a folder, by name, sorted. A suite may import the folder as a package.

    Raises:
        ValueError: a file defines no suite of its own name.
    """
    parent = str(folder.resolve().parent)
    if parent not in sys.path:
        sys.path.insert(0, parent)
    suites = [_load_suite(path) for path in sorted(folder.glob("suite_*.py"))]
    return {suite.name: suite for suite in suites}


def choose_suites(suites: Mapping[str, Suite], names: list[str]) -> list[Suite]:
    """Suites of the given names, in their order; all of them where no name is given.

    Raises:
        ValueError: a name is unknown; the message lists the known ones.
    """
    unknown = [name for name in names if name not in suites]
    if unknown:
        known = ", ".join(sorted(suites)) or "none"
        raise ValueError(f"unknown suite {', '.join(unknown)}; known suites: {known}")
    return [suites[name] for name in names or sorted(suites)]


def runnable_suites(suites: list[Suite], *, has_gpu: bool) -> tuple[list[Suite], list[str]]:
    """Suites that can run here, and the names of those that need a GPU which is not there."""
    left_out = [suite.name for suite in suites if suite.device == "cuda" and not has_gpu]
    return [suite for suite in suites if suite.name not in left_out], left_out


def _load_suite(path: Path) -> Suite:
    spec = importlib.util.spec_from_file_location(f"hisparse_benchmarks.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    suite = getattr(module, "SUITE", None)
    name = path.stem.removeprefix("suite_")
    if not isinstance(suite, Suite) or suite.name != name:
        found = suite.name if isinstance(suite, Suite) else suite
        raise ValueError(f"{path}: SUITE is {found!r}, need a Suite named {name!r}")
    return suite
