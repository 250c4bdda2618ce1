"""Draw the hit rates of a results file: a panel for each trace, a line for each policy."""

import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from hisparse_sidecar.cli.bench.figure import row_of_panels
from hisparse_sidecar.cli.bench.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HIT_RATE = "hit rate"

_CASE = re.compile(r"(?P<trace>.+), (?P<pages>\d+) pages, (?P<policy>\w+)")
_MARKERS = {"lru": "o", "s3_fifo": "s", "leaf_first": "^"}
_PANEL_INCHES = (4.2, 3.6)

Lines = dict[str, list[tuple[int, float]]]  # policy -> (capacity in pages, hit rate), ascending


def read_lines(rows: list[Row]) -> dict[str, Lines]:
    """Lines of every trace, in the order of the rows."""
    traces: dict[str, Lines] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        case = _CASE.fullmatch(row.case)
        if case and row.metric == HIT_RATE:
            point = (int(case["pages"]), float(row.ours))
            traces[case["trace"]][case["policy"]].append(point)
    return {
        trace: {policy: sorted(points) for policy, points in lines.items()}
        for trace, lines in traces.items()
    }


def plot_hit_rates(rows: list[Row], path: Path) -> None:
    """Write a PNG of the rows.

    Raises:
        ValueError: matplotlib is not installed, or there is nothing to draw.
    """
    traces = read_lines(rows)
    if not traces:
        raise ValueError("0 hit rates to draw, at least 1 needed")
    figure, panels = row_of_panels(len(traces), _PANEL_INCHES)
    for axes, (trace, lines) in zip(panels, traces.items(), strict=True):
        _draw(axes, trace, lines)
    panels[0].set_ylabel(HIT_RATE)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _draw(axes: "Axes", trace: str, lines: Lines) -> None:
    for policy, points in lines.items():
        pages, rates = zip(*points, strict=True)
        axes.plot(pages, rates, marker=_MARKERS.get(policy, "x"), label=policy, alpha=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("capacity, pages")
    axes.set_title(trace, fontsize=9, loc="left")
    axes.grid(alpha=0.3)
