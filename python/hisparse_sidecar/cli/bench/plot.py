"""Draw a results file as an image: one panel for each metric, one bar for each case."""

from pathlib import Path
from typing import TYPE_CHECKING

from hisparse_sidecar.cli.bench.figure import new_figure
from hisparse_sidecar.cli.bench.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL_INCHES = (9.0, 0.8)  # width of a panel; height of its frame, without bars
_BAR_INCHES = 0.32


def plot_rows(rows: list[Row], path: Path) -> None:
    """Write a PNG of the rows: ours, and the peer's beside it where there is one.

    Raises:
        ValueError: matplotlib is not installed, or there is nothing to draw.
    """
    if not rows:
        raise ValueError("0 rows to draw, at least 1 needed")
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(row.metric, []).append(row)
    heights = [_PANEL_INCHES[1] + _BAR_INCHES * _num_bars(panel) for panel in panels.values()]
    figure = new_figure(_PANEL_INCHES[0], sum(heights))
    grid = figure.subplots(len(panels), squeeze=False, height_ratios=heights)
    for axes, (metric, panel) in zip(grid[:, 0], panels.items(), strict=True):
        _draw_panel(axes, metric, panel)
    figure.suptitle(f"{rows[0].suite}, {rows[0].gpu}", fontsize=10)
    figure.savefig(path, dpi=120)


def _draw_panel(axes: "Axes", metric: str, rows: list[Row]) -> None:
    bars = [(row.case, float(row.ours), "C0") for row in rows]
    bars += [(f"{row.case} [{row.peer}]", float(row.peer_value), "C7") for row in rows if row.peer]
    bars.sort(key=lambda bar: bar[0], reverse=True)
    labels, values, colours = zip(*bars, strict=True)
    drawn = axes.barh(labels, values, color=colours)
    axes.bar_label(drawn, fmt="{:,.4g}", padding=3, fontsize=8)
    axes.margins(x=0.12)
    axes.tick_params(labelsize=8)
    axes.set_title(metric, fontsize=9, loc="left")


def _num_bars(rows: list[Row]) -> int:
    return sum(2 if row.peer else 1 for row in rows)
