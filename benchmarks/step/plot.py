"""Draw a results file of the suite: a bar for each step, stacked by stage, the peers' beside it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.step.record import STAGES
from hisparse_sidecar.cli.bench.figure import row_of_panels
from hisparse_sidecar.cli.bench.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CASE = re.compile(
    r"step batch (?P<batch>\d+), (?P<percent>\d+) % misses, L=128K, (?P<heads>\d+) heads, "
    r"(?P<stage>[^,]+)"
)
_WHOLE, REST, UNDIVIDED = "whole", "between the ops", "stages not measured"
_COLOURS = {part: f"C{number}" for number, part in enumerate((*STAGES, REST))} | {UNDIVIDED: "0.7"}
_PANEL_INCHES = (5.2, 4.4)
OURS, PEERS = "ours", "peers"


@dataclass(frozen=True)
class Bar:
    """One step.

    Attributes:
        batch: sequences.
        label: its other sizes, and whose it is.
        parts: microseconds of each stage.
    """

    batch: int
    label: str
    parts: dict[str, float]


def read_bars(rows: list[Row]) -> list[Bar]:
    """Ours by stage, with what the whole step takes besides, the peers' parts, dense attention."""
    bars: dict[tuple[int, str], dict[str, float]] = {}
    for row in rows:
        found = _CASE.fullmatch(row.case)
        if not found or row.metric != "median us":
            continue
        batch, stage = int(found["batch"]), found["stage"]
        label = f"{found['percent']} %, {found['heads']}"
        bars.setdefault((batch, f"{label}, {OURS}"), {})[stage] = float(row.ours)
        if row.peer.endswith("dense"):
            bars[batch, f"{label}, dense"] = {"attend": float(row.peer_value)}
        elif row.peer:
            bars.setdefault((batch, f"{label}, {PEERS}"), {})[stage] = float(row.peer_value)
    return [Bar(batch, label, _stacked(label, parts)) for (batch, label), parts in bars.items()]


def _stacked(label: str, parts: dict[str, float]) -> dict[str, float]:
    """Stages, and of ours what is left of the whole; the whole where no stage was measured."""
    stages = {name: parts[name] for name in STAGES if name in parts}
    if not stages:
        return {UNDIVIDED: parts[_WHOLE]}
    rest = parts.get(_WHOLE, 0.0) - sum(stages.values())
    return stages | ({REST: rest} if rest > 0 and label.endswith(OURS) else {})


def plot_stages(rows: list[Row], path: Path) -> None:
    """Write a PNG of the rows.

    Raises:
        ValueError: matplotlib is not installed, or no row is a time of a step.
    """
    bars = read_bars(rows)
    if not bars:
        raise ValueError("0 times of steps, at least 1 needed")
    batches = sorted({bar.batch for bar in bars})
    figure, panels = row_of_panels(len(batches), _PANEL_INCHES)
    for axes, batch in zip(panels, batches, strict=True):
        _draw(axes, [bar for bar in bars if bar.batch == batch])
        axes.set_title(f"batch {batch}", fontsize=9, loc="left")
    panels[0].set_ylabel("us of one layer")
    panels[-1].legend(fontsize=7)
    title = f"decode step, 128K tokens, misses and heads: {rows[0].gpu}, {rows[0].commit}"
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)


def _draw(axes: "Axes", bars: list[Bar]) -> None:
    labels = [bar.label for bar in bars]
    heights = [0.0] * len(bars)
    for part, colour in _COLOURS.items():
        values = [bar.parts.get(part, 0.0) for bar in bars]
        axes.bar(labels, values, bottom=heights, color=colour, label=part)
        heights = [height + value for height, value in zip(heights, values, strict=True)]
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(visible=True, axis="y", alpha=0.3)
