"""Draw a results file of the suite: time over context length, a panel for each kind of step."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hisparse_sidecar.cli.bench.figure import row_of_panels
from hisparse_sidecar.cli.bench.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, FLOOR = "ours, HISA", "floor of HISA"

_PANEL_INCHES = (5.0, 4.2)
_MICROSECONDS, _SHARE = "median us", "share of the ceiling"
_CASE = re.compile(
    r"(?P<panel>decode batch \d+|prefill \d+ rows), L=(?P<keys>\d+)K, 64 heads(?P<flat>, flat.*)?"
)
_STYLES: dict[str, dict[str, Any]] = {
    OURS: {"color": "C0", "marker": "o"},
    "ours, flat": {"color": "C0", "marker": "s", "linestyle": "--"},
    "ours, flat by DeepGEMM": {"color": "C2", "marker": "s", "linestyle": "--"},
    FLOOR: {"color": "black", "linestyle": ":"},
    "DeepGEMM + fast_topk": {"color": "C7", "marker": "v"},
}
_PEER_STYLE: dict[str, Any] = {"color": "C7", "marker": "^"}


@dataclass(frozen=True, order=True)
class Point:
    """One time of one line.

    Attributes:
        panel: kind of step, "decode batch 8" or "prefill 4096 rows".
        line: who was timed, or `FLOOR`.
        keys: context length in K.
        microseconds: of one selection.
    """

    panel: str
    line: str
    keys: int
    microseconds: float


def read_points(rows: list[Row]) -> list[Point]:
    """Of 64 heads and normal rows, sorted; a peer beside several of ours is taken once."""
    times: dict[tuple[str, str, int], float] = {}
    for row in rows:
        case = _CASE.fullmatch(row.case)
        if case is None:
            continue
        panel, keys = case["panel"], int(case["keys"])
        for line, value in _lines(row, case["flat"] or ""):
            times.setdefault((panel, line, keys), value)
    return sorted(Point(*place, _floor(place, value, times)) for place, value in times.items())


def _lines(row: Row, flat: str) -> Iterator[tuple[str, float]]:
    """Names and values of what a row holds: times, and of HISA its share of the ceiling."""
    if row.metric == _MICROSECONDS:
        yield f"ours{flat}" if flat else OURS, float(row.ours)
        if row.peer:
            yield row.peer, float(row.peer_value)
    elif row.metric == _SHARE and not flat:
        yield FLOOR, float(row.ours)


def _floor(
    place: tuple[str, str, int], value: float, times: dict[tuple[str, str, int], float]
) -> float:
    """The time itself; of a share of the ceiling the floor that it is a share of."""
    panel, line, keys = place
    return value * times[panel, OURS, keys] if line == FLOOR else value


def plot_lengths(rows: list[Row], path: Path) -> None:
    """Write a PNG of the rows.

    Raises:
        ValueError: matplotlib is not installed, or no row is a time over a length.
    """
    points = read_points(rows)
    if not points:
        raise ValueError("0 times over a context length, at least 1 needed")
    panels = _panels(points)
    figure, drawn = row_of_panels(len(panels), _PANEL_INCHES)
    for axes, panel in zip(drawn, panels, strict=True):
        _draw_panel(axes, panel, [point for point in points if point.panel == panel])
    title = f"selection to final indices, 64 heads, top 2048: {rows[0].gpu}, {rows[0].commit}"
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)


def _panels(points: list[Point]) -> list[str]:
    """Kinds of steps with more than one length; all of them where none has."""
    lengths: dict[str, set[int]] = {}
    for point in points:
        lengths.setdefault(point.panel, set()).add(point.keys)
    several = [panel for panel, keys in lengths.items() if len(keys) > 1]
    return sorted(several or lengths, key=_panel_order)


def _panel_order(panel: str) -> tuple[str, int]:
    return panel.split()[0], next(int(word) for word in panel.split() if word.isdigit())


def _draw_panel(axes: "Axes", panel: str, points: list[Point]) -> None:
    from matplotlib.ticker import LogLocator

    for line in sorted({point.line for point in points}, key=_line_order):
        some = [point for point in points if point.line == line]
        style = _STYLES.get(line, _PEER_STYLE)
        xs, ys = [point.keys for point in some], [point.microseconds for point in some]
        axes.plot(xs, ys, label=line, markersize=4, linewidth=1.2, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", subs=())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    lengths = sorted({point.keys for point in points})
    axes.set_xticks(
        lengths, [f"{keys}K" if keys < 1024 else f"{keys // 1024}M" for keys in lengths]
    )
    axes.set(xlabel="tokens", ylabel="us")
    axes.tick_params(labelsize=7)
    axes.set_title(panel, fontsize=9, loc="left")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=7)


def _line_order(line: str) -> int:
    return list(_STYLES).index(line) if line in _STYLES else len(_STYLES)
