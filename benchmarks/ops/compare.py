"""Is a result right? Each check raises `WrongResultError` with the numbers that say so."""

from dataclasses import dataclass

import torch


class WrongResultError(Exception):
    """A result that must not be timed."""


@dataclass(frozen=True)
class Tolerance:
    """How far floats may be: an element passes by either bound, all of them together by `diff`."""

    absolute: float
    relative: float
    diff: float  # 1 - 2 x.y / (x.x + y.y)


# what the peers' own tests ask of them against simulated fp8 and bf16
LOGITS = Tolerance(1e-3, 1e-3, 5e-6)  # absolute: of the largest value
ATTENTION = Tolerance(1e-3, 3.01 / 128, 7e-6)
LSE = Tolerance(1e-4, 8.01 / 65536, 1e-8)


def check_near(name: str, found: torch.Tensor, expected: torch.Tensor, limit: Tolerance) -> None:
    """Finite values within the tolerance, infinities and their places exactly."""
    _check_shape(name, found, expected)
    x, y = found.double(), expected.double()
    finite = y.isfinite()
    if not torch.equal(x[~finite], y[~finite]) or not bool(x[finite].isfinite().all()):
        raise WrongResultError(f"{name}: infinities or NaN differ")
    x, y = x[finite], y[finite]
    far = ((x - y).abs() > limit.absolute) & ((x - y).abs() > limit.relative * y.abs())
    if bool(far.any()):
        worst = float((x - y).abs().max())
        raise WrongResultError(
            f"{name}: {int(far.sum())} of {x.numel()} too far, at most {worst:.3g}"
        )
    norm = (x * x + y * y).sum()
    diff = float(1 - 2 * (x * y).sum() / norm) if norm else 0.0
    if diff > limit.diff:
        raise WrongResultError(f"{name}: calc_diff is {diff:.3g}, at most {limit.diff:.3g} allowed")


def check_logits(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Index logits: the absolute bound is a share of the largest value."""
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 1.0
    limit = Tolerance(LOGITS.absolute * largest, LOGITS.relative, LOGITS.diff)
    check_near(name, found, expected, limit)


def check_equal(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Integers and bytes, all of them."""
    _check_shape(name, found, expected)
    wrong = int((found != expected).sum())
    if wrong:
        raise WrongResultError(f"{name}: {wrong} of {found.numel()} differ")


def check_mostly_equal(
    name: str, found: torch.Tensor, expected: torch.Tensor, share: float
) -> None:
    """Choices by rounded scores: near-ties may fall either way in a share of the rows."""
    _check_shape(name, found, expected)
    wrong = int((found != expected).any(1).sum())
    if wrong > share * len(found):
        raise WrongResultError(f"{name}: {wrong} of {len(found)} rows differ")


def check_same_values(
    name: str, values: torch.Tensor, found: torch.Tensor, expected: torch.Tensor
) -> None:
    """Columns of equally good values, each at most once: what a top-k must give whatever its ties.

    Args:
        name: of what is checked.
        values: [rows, n] fp32.
        found, expected: [rows, k] columns, in any order.
    """
    _check_shape(name, found, expected)
    if int(found.min()) < 0 or int(found.max()) >= values.shape[1]:
        raise WrongResultError(f"{name}: columns {int(found.min())}..{int(found.max())}")
    ordered = found.long().sort(1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise WrongResultError(f"{name}: a column was taken twice")
    best = [values.gather(1, columns.long()).sort(1).values for columns in (found, expected)]
    check_equal(f"{name}, sorted values", best[0], best[1])


def _check_shape(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    if found.shape != expected.shape:
        raise WrongResultError(f"{name}: {list(found.shape)}, needs {list(expected.shape)}")
