"""Suite `swap`: resolve and swap-in on one GPU over batch and miss rate, beside SGLang.

The cases of `ops`, and the one where every row is resident: the same checks, inputs and timing.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.lines import Panel, Point, draw_lines
from hisparse_sidecar.cli.bench.rows import Measurement, Row
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch

if TYPE_CHECKING:
    from benchmarks.ops.case import Case
    from benchmarks.ops.peers import Peers
    from benchmarks.ops.pinned import PinnedPool

_PERCENTS = (0, 2, 10, 30)
_CASE = re.compile(
    r"resolve \+ swap_in batch (?P<batch>\d+), (all resident|(?P<percent>\d+) % misses), L=\w+"
)
_PANELS = {
    "link GB/s": Panel("misses, %", "GB/s"),
    "median us": Panel("misses, %", "us", log_y=True),
}


def all_cases(peers: "Peers", pool: "PinnedPool") -> "Iterator[Case]":
    """Every batch at every miss rate."""
    from benchmarks.ops.swap_cases import BATCHES, swap_case

    for percent in _PERCENTS:
        for batch in BATCHES:
            yield swap_case(peers, pool, batch, percent)


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    from benchmarks.ops.run_suite import run_suite

    yield from run_suite(stopwatch, all_cases, ("SGLang",))


def read_points(rows: list[Row]) -> list[Point]:
    """Times and rates over the miss rate; nothing crosses the link where all is resident."""
    points = []
    for row in rows:
        found = _CASE.fullmatch(row.case)
        if not found or row.metric not in _PANELS:
            continue
        panel, line = row.metric, f"batch {found['batch']}"
        x = float(found["percent"] or 0)
        points.append(Point(panel, line, "", x, float(row.ours)))
        if row.peer:
            points.append(Point(panel, line, row.peer, x, float(row.peer_value)))
    return points


def plot_misses(rows: list[Row], path: Path) -> None:
    """Write a PNG of the rows; raises ValueError as `draw_lines` does."""
    title = f"resolve + swap_in, top 2048 of 64K: {rows[0].gpu}, {rows[0].commit}" if rows else ""
    draw_lines(read_points(rows), _PANELS, title, path)


SUITE = Suite(
    name="swap",
    summary="resolve + swap-in on a GPU over batch and miss rate (us, link GB/s), beside SGLang",
    device="cuda",
    measure=_measure,
    plot=plot_misses,
)
