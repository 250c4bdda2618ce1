"""Figures of results files: matplotlib is asked for where something is drawn, and nowhere else."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("a plot needs matplotlib: pip install hisparse-sidecar[plots]") from None
    return Figure(figsize=(width, height), layout="constrained")


def row_of_panels(count: int, panel_inches: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """A figure, and its panels side by side; each is so wide and high.

    Raises:
        ValueError: matplotlib is not installed.
    """
    width, height = panel_inches
    figure = new_figure(width * count, height)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])
