"""How near two float tensors must be: absolute, relative and cosine-like, one table for all."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    absolute: float
    relative: float
    diff: float  # 1 - 2 x.y / (x.x + y.y): blind to scale, sharp on patterns


TOLERANCES = {
    torch.float32: Tolerance(2e-5, 2e-5, 1e-8),
    torch.bfloat16: Tolerance(1e-3, 2.01 / 128, 5e-6),
    torch.float16: Tolerance(5e-4, 2.01 / 1024, 1e-6),
    torch.float8_e4m3fn: Tolerance(1e-3, 2.01 / 128, 5e-6),  # e4m3 products: Hopper sums 14 bits
}


def calc_diff(actual: torch.Tensor, expected: torch.Tensor) -> float:
    x, y = actual.double().flatten(), expected.double().flatten()
    norm = (x * x + y * y).sum()
    return 0.0 if norm == 0 else float(1 - 2 * (x * y).sum() / norm)


def assert_near(
    actual: torch.Tensor, expected: torch.Tensor, tolerance: Tolerance | None = None
) -> None:
    """Infinities must agree exactly; the rest by all three measures of the actual's dtype."""
    tolerance = tolerance or TOLERANCES[actual.dtype]
    assert actual.shape == expected.shape, f"{list(actual.shape)} needs {list(expected.shape)}"
    x, y = actual.double(), expected.double()
    finite = y.isfinite()
    assert torch.equal(x[~finite], y[~finite]), "infinities differ"
    torch.testing.assert_close(
        x[finite], y[finite], rtol=tolerance.relative, atol=tolerance.absolute
    )
    diff = calc_diff(x[finite], y[finite])
    assert diff <= tolerance.diff, f"calc_diff is {diff:.3g}, needs {tolerance.diff:.3g}"


def assert_near_largest(actual: torch.Tensor, expected: torch.Tensor, tolerance: Tolerance) -> None:
    """Like `assert_near`, in units of the largest finite value expected: for sums that cancel."""
    finite = expected[expected.isfinite()].abs()
    largest = finite.max().clamp(min=1e-30) if finite.numel() else torch.tensor(1.0)
    assert_near(actual / largest, expected / largest, tolerance)


def assert_bits_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype, f"{actual.dtype} needs {expected.dtype}"
    assert actual.shape == expected.shape, f"{list(actual.shape)} needs {list(expected.shape)}"
    as_bytes = [t.contiguous().view(-1).view(torch.uint8) for t in (actual, expected)]
    differing = (as_bytes[0] != as_bytes[1]).nonzero()[:, 0]
    if len(differing):
        first = int(differing[0])
        element = first // actual.element_size()
        at = [int(i) for i in torch.unravel_index(torch.tensor(element), actual.shape)]
        values = actual.flatten()[element].item(), expected.flatten()[element].item()
        raise AssertionError(
            f"{len(differing)} bytes differ, the first is {first}: element {at}, {values}"
        )
