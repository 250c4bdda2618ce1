"""The Clopper-Pearson lower bound on a probability, from how often something came true."""

import math

from hisparse_sidecar.requirements import require

_MAX_TERMS = 1_000_000  # of the continued fraction; about the root of the trials are needed
_TINY = 1e-300


def lower_bound(successes: int, trials: int, confidence: float = 0.95) -> float:
    """One-sided lower bound: the true probability lies below it at most 1 - `confidence` often.

    It is the p for which `successes` or more of `trials` come true with probability
    1 - `confidence`.

    Raises:
        InvalidArgument: `successes` is not within the trials, or `confidence` not within (0, 1).
    """
    message = f"{successes} successes of {trials} trials, need 0 to {trials} and 1 trial or more"
    require(0 <= successes <= trials and trials >= 1, message)
    require(0 < confidence < 1, f"confidence is {confidence}, must be > 0 and < 1")
    if successes == 0:
        return 0.0
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:  # until doubles end
        if _at_least(successes, trials, middle) < 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def _at_least(successes: int, trials: int, p: float) -> float:
    """P(`successes` or more of `trials`) at probability p: the incomplete beta function."""
    a, b = float(successes), float(trials - successes + 1)
    log_scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_scale += a * math.log(p) + b * math.log1p(-p)
    if p < (a + 1) / (a + b + 2):  # where the fraction converges fast
        return math.exp(log_scale) * _fraction(a, b, p) / a
    return 1 - math.exp(log_scale) * _fraction(b, a, 1 - p) / b


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1 / _nonzero(1 - (a + b) * x / (a + 1))
    value = d
    for n in range(1, _MAX_TERMS):
        even = n * (b - n) * x / ((a + 2 * n - 1) * (a + 2 * n))
        odd = -(a + n) * (a + b + n) * x / ((a + 2 * n) * (a + 2 * n + 1))
        for term in (even, odd):
            d = 1 / _nonzero(1 + term * d)
            c = _nonzero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
