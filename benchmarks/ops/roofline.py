"""Draw a results file of the suite as a roofline: achieved rates under the measured ceilings.

Left, cases with matrix products: operations a second over operations a byte. Right, cases that
only move or compare bytes: bytes a second beside the copy that bounds them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hisparse_sidecar.cli.bench.figure import new_figure
from hisparse_sidecar.cli.bench.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE_INCHES = (16.0, 9.0)  # at least; bars take what they need
_BAR_INCHES = 0.14
_OURS, _PEER = "C0", "C7"
_UNITS = {"TFLOP/s": 1e12, "GB/s": 1e9, "link GB/s": 1e9}
_MARKERS = "osD^vPX*<>"
_CEILING = "ceiling "


@dataclass(frozen=True)
class Point:
    """One case of ours or of a peer.

    Attributes:
        case: with its sizes.
        peer: "" = ours.
        intensity: operations a byte; 0 without products.
        rate: operations a second, of a case without products bytes a second.
        over_link: whether those bytes crossed the link.
    """

    case: str
    peer: str
    intensity: float
    rate: float
    over_link: bool

    @property
    def op(self) -> str:
        """The first word of the case."""
        return self.case.split()[0]


def read_ceilings(rows: list[Row]) -> dict[str, float]:
    """Operations or bytes a second, by the name of the ceiling."""
    return {
        row.case.removeprefix(_CEILING): float(row.ours) * _UNITS[row.metric]
        for row in rows
        if row.case.startswith(_CEILING)
    }


def read_points(rows: list[Row]) -> list[Point]:
    """Ours once for each case, and each of its peers."""
    intensity = {row.case: float(row.ours) for row in rows if row.metric == "FLOP/B"}
    points: dict[tuple[str, str], Point] = {}
    for row in rows:
        if row.metric not in _UNITS or row.case.startswith(_CEILING):
            continue
        per_byte = intensity.get(row.case, 0.0)
        scale = _UNITS[row.metric]
        if per_byte and row.metric == "GB/s":
            scale *= per_byte
        for name, value in (("", row.ours), (row.peer, row.peer_value)):
            if value:
                link = row.metric == "link GB/s"
                points[row.case, name] = Point(row.case, name, per_byte, float(value) * scale, link)
    return list(points.values())


def plot_roofline(rows: list[Row], path: Path) -> None:
    """Write a PNG of the rows.

    Raises:
        ValueError: matplotlib is not installed, or the rows hold no ceilings.
    """
    ceilings, points = read_ceilings(rows), read_points(rows)
    if not ceilings or not points:
        raise ValueError(
            f"{len(ceilings)} ceilings and {len(points)} cases, at least 1 each needed"
        )
    products = [point for point in points if point.intensity]
    copies = [point for point in points if not point.intensity]
    height = max(_SIZE_INCHES[1], _BAR_INCHES * len(copies))
    figure = new_figure(_SIZE_INCHES[0], height)
    roofs, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_roofs(roofs, ceilings, products)
    _draw_bars(bars, ceilings, copies)
    figure.suptitle(f"{rows[0].suite}, {rows[0].gpu}, {rows[0].commit}", fontsize=11)
    figure.savefig(path, dpi=120)


def _draw_roofs(axes: "Axes", ceilings: dict[str, float], points: list[Point]) -> None:
    least = min((point.intensity for point in points), default=1.0) / 2
    most = max((point.intensity for point in points), default=1.0) * 4
    for name, style in (("fp8", "-"), ("bf16", "--")):
        ridge = ceilings[name] / ceilings["device"]
        ends = [least, max(ridge, least), max(most, 2 * ridge)]
        heights = [min(end * ceilings["device"], ceilings[name]) / 1e12 for end in ends]
        label = f"{name}, {ceilings[name] / 1e12:.0f} TFLOP/s"
        axes.plot(ends, heights, style, color="black", linewidth=1, label=label)
    ops = list(dict.fromkeys(point.op for point in points))
    for number, op in enumerate(ops):
        for is_peer, colour in ((False, _OURS), (True, _PEER)):
            some = [point for point in points if point.op == op and bool(point.peer) == is_peer]
            if some:
                label = f"{op}, peer" if is_peer else op
                xs = [point.intensity for point in some]
                ys = [point.rate / 1e12 for point in some]
                marker = _MARKERS[number % len(_MARKERS)]
                axes.scatter(xs, ys, s=30, color=colour, marker=marker, alpha=0.8, label=label)
    axes.set(xscale="log", yscale="log", xlabel="FLOP/B of device memory", ylabel="TFLOP/s")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8)


def _draw_bars(axes: "Axes", ceilings: dict[str, float], points: list[Point]) -> None:
    bars = points[::-1]  # the first one on top
    labels = [f"{point.case} [{point.peer}]" if point.peer else point.case for point in bars]
    colours = [_PEER if point.peer else _OURS for point in bars]
    axes.barh(labels, [point.rate / 1e9 for point in bars], color=colours)
    for name, style in (("device", "-"), ("to_device", "--"), ("to_host", ":")):
        label = f"{name} copy, {ceilings[name] / 1e9:.0f} GB/s"
        axes.axvline(ceilings[name] / 1e9, linestyle=style, color="black", linewidth=1, label=label)
    axes.set(xscale="log", xlabel="GB/s")
    axes.margins(y=0.01)
    axes.tick_params(axis="y", labelsize=7)
    axes.legend(fontsize=8)
