"""Benchmark rows: what a measurement becomes, and how a CSV file of them is merged.

Merging: a row replaces the row of its file with the same (suite, case, metric, peer), in place;
other rows stay; rows not yet in the file follow in the order measured. `replace=True` starts over.
"""

import csv
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Measurement:
    """One number of one case, perhaps beside a peer's.

    Attributes:
        case: what was run, with its sizes.
        metric: what was measured, with its unit.
        ours: our value.
        better: whether a higher or a lower value is the better one.
        peer: name of what was measured beside it; "" = nothing was.
        peer_value: the peer's value in the same unit; None without a peer.
        ratio_spread: 10th and 90th percentile of `ratio` over the repetitions; None = not known.
    """

    case: str
    metric: str
    ours: float
    better: Literal["higher", "lower"]
    peer: str = ""
    peer_value: float | None = None
    ratio_spread: tuple[float, float] | None = None

    @property
    def ratio(self) -> float | None:
        """How many times better ours is; None without a peer."""
        if self.peer_value is None:
            return None
        ours_over_peer = self.ours / self.peer_value
        return ours_over_peer if self.better == "higher" else 1 / ours_over_peer


@dataclass(frozen=True)
class Environment:
    """What a number depends on besides the code. `gpu` names the CPU where no GPU was used."""

    gpu: str
    driver: str
    torch: str
    triton: str
    commit: str


@dataclass(frozen=True)
class Row:
    """One line of a results file; every field as it is written."""

    suite: str
    case: str
    metric: str
    ours: str
    peer: str
    peer_value: str
    ratio: str
    gpu: str
    driver: str
    torch: str
    triton: str
    commit: str
    ratio_p10: str = ""
    ratio_p90: str = ""

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """Rows of one file with the same identity are measurements of the same thing."""
        return (self.suite, self.case, self.metric, self.peer)


COLUMNS = tuple(field.name for field in fields(Row))
_NEEDED_COLUMNS = COLUMNS[: COLUMNS.index("ratio_p10")]  # of files written before there were more


def make_row(suite: str, measurement: Measurement, environment: Environment) -> Row:
    """The line of a measurement."""
    p10, p90 = measurement.ratio_spread or (None, None)
    return Row(
        suite=suite,
        case=measurement.case,
        metric=measurement.metric,
        ours=_number(measurement.ours),
        peer=measurement.peer,
        peer_value=_number(measurement.peer_value),
        ratio=_number(measurement.ratio),
        **asdict(environment),
        ratio_p10=_number(p10),
        ratio_p90=_number(p90),
    )


def results_file(folder: Path, suite: str, gpu: str) -> Path:
    """File of one suite and GPU; a name that begins with "cpu" gives `SUITE-cpu.csv`."""
    words = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return folder / f"{suite}-{'cpu' if words.startswith('cpu') else words}.csv"


def read_rows(path: Path) -> list[Row]:
    """Rows of a results file; none if it does not exist.

    Raises:
        ValueError: its columns are not ours.
    """
    if not path.exists():
        return []
    with path.open(newline="") as lines:
        reader = csv.DictReader(lines)
        found = tuple(reader.fieldnames or ())
        if found not in (COLUMNS, _NEEDED_COLUMNS):
            raise ValueError(f"{path}: columns are {','.join(found)}, need {','.join(COLUMNS)}")
        return [Row(**line) for line in reader]


def write_rows(path: Path, rows: Iterable[Row], *, replace: bool = False) -> list[Row]:
    """Merge rows into a results file, which is replaced in one rename.

    Args:
        path: the file; its folder is made if needed.
        rows: what was measured.
        replace: forget what the file held.

    Returns:
        All rows that the file holds now.
    """
    merged = {} if replace else {row.identity: row for row in read_rows(path)}
    merged.update({row.identity: row for row in rows})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    with partial.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in merged.values())
    partial.replace(path)
    return list(merged.values())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
