"""How numbers that are seen again and again move: slopes, and what only grows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, linear_regression, median, pvariance, quantiles

LEAST_VALUES = 40  # ten in each quarter
_BLOCKS, _QUARTERS = 12, 4


@dataclass(frozen=True)
class Slope:
    """Of a straight line through points.

    Attributes:
        per_second: how fast the values rise.
        error: standard error of it.
    """

    per_second: float
    error: float


def slope(seconds: Sequence[float], values: Sequence[float]) -> Slope:
    """Least squares through the means of 12 runs of neighbours.

    Neighbours are alike, so that an error made from single points would be too small.

    Args:
        seconds: [num] float, ascending, 12 at least, not all of them equal.
        values: [num] float.

    Raises:
        ValueError: there are fewer than 12 points, or seconds and values of different numbers.
    """
    if len(seconds) != len(values) or len(seconds) < _BLOCKS:
        found = f"{len(seconds)} seconds and {len(values)} values"
        raise ValueError(f"a slope of {found}, needs as many of both, {_BLOCKS} at least")
    times, means = [[fmean(part) for part in _parts(of, _BLOCKS)] for of in (seconds, values)]
    rise, start = linear_regression(times, means)
    pairs = zip(times, means, strict=True)
    missed = sum((mean - start - rise * time) ** 2 for time, mean in pairs)
    spread = pvariance(times) * _BLOCKS
    return Slope(rise, math.sqrt(missed / (_BLOCKS - 2) / spread))


def grows(values: Sequence[float]) -> bool:
    """Whether values grow throughout, by more than they vary.

    The median rises from each quarter to the next, and nine tenths of the last quarter are above
    nine tenths of the first. One step, be it that of a thread made late, is no growth.

    Args:
        values: [num] float, in the order in which they were seen, 40 at least.

    Raises:
        ValueError: there are fewer.
    """
    if len(values) < LEAST_VALUES:
        raise ValueError(f"growth of {len(values)} values, needs {LEAST_VALUES} at least")
    quarters = _parts(values, _QUARTERS)
    medians = [median(quarter) for quarter in quarters]
    rises = all(later > earlier for earlier, later in pairwise(medians))
    ceiling, floor = quantiles(quarters[0], n=10)[-1], quantiles(quarters[-1], n=10)[0]
    return rises and floor > ceiling


def ratio_with_error(parts: Sequence[float], wholes: Sequence[float]) -> tuple[float, float]:
    """The share of all parts in all wholes, and its standard error.

    Args:
        parts: [num] float, one at least.
        wholes: [num] float, not all of them 0.
    """
    total = sum(wholes)
    share = sum(parts) / total
    missed = sum((part - share * whole) ** 2 for part, whole in zip(parts, wholes, strict=True))
    return share, math.sqrt(missed) / total


def _parts(values: Sequence[float], count: int) -> list[Sequence[float]]:
    ends = [len(values) * number // count for number in range(count + 1)]
    return [values[start:end] for start, end in pairwise(ends)]
