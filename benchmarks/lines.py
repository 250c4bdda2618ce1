"""Draw points as lines, a panel for each quantity: ours solid, a peer dashed in the same colour."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hisparse_sidecar.cli.bench.figure import row_of_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL_INCHES = (5.4, 4.4)


@dataclass(frozen=True)
class Point:
    """One value of one line.

    Attributes:
        panel: where it is drawn.
        line: what its line has in common, "64 heads".
        peer: whose value it is; "" = ours.
        x, y: where.
    """

    panel: str
    line: str
    peer: str
    x: float
    y: float


@dataclass(frozen=True)
class Panel:
    """How a panel is drawn: labels of its axes, and which of them are logarithmic."""

    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False


def draw_lines(points: list[Point], panels: Mapping[str, Panel], title: str, path: Path) -> None:
    """Write a PNG; a panel without points is left out.

    Raises:
        ValueError: matplotlib is not installed, or there are no points.
    """
    named = [name for name in panels if any(point.panel == name for point in points)]
    if not named:
        raise ValueError("0 points to draw, at least 1 needed")
    figure, drawn = row_of_panels(len(named), _PANEL_INCHES)
    for axes, name in zip(drawn, named, strict=True):
        _draw_panel(axes, panels[name], [point for point in points if point.panel == name])
        axes.set_title(name, fontsize=9, loc="left")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)


def _draw_panel(axes: "Axes", panel: Panel, points: list[Point]) -> None:
    for number, line in enumerate(dict.fromkeys(point.line for point in points)):
        own = [point for point in points if point.line == line]
        for peer in sorted({point.peer for point in own}):
            places = sorted((point.x, point.y) for point in own if point.peer == peer)
            axes.plot(
                [x for x, _ in places],
                [y for _, y in places],
                linestyle="--" if peer else "-",
                marker="^" if peer else "o",
                color=f"C{number}",
                markersize=4,
                linewidth=1.2,
                label=f"{line}, {peer}" if peer else line,
            )
    _scale(axes, panel)
    ticks = sorted({point.x for point in points})
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
    axes.tick_params(labelsize=7)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=6)


def _scale(axes: "Axes", panel: Panel) -> None:
    from matplotlib.ticker import LogLocator

    if panel.log_x:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    if panel.log_y:
        axes.set_yscale("log", subs=())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
