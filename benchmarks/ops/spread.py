"""How far the ratio of two contenders varies over their repetitions."""

from collections.abc import Sequence
from statistics import quantiles

_PARTS = 10


def ratio_spread(ours: Sequence[float], peer: Sequence[float]) -> tuple[float, float] | None:
    """10th and 90th percentile of peer / ours over all pairs of repetitions; None for one pair.

    All pairs, because the two ran one after the other: none of them belong together.
    """
    ratios = [theirs / own for own in ours for theirs in peer]
    if len(ratios) < 2:
        return None
    tenths = quantiles(ratios, n=_PARTS, method="inclusive")
    return tenths[0], tenths[-1]
