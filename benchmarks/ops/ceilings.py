"""Measure this machine's ceilings: large copies and large matrix products, once in a run."""

from collections.abc import Callable

import torch

from benchmarks.ops.timing import GpuTimer, Timed
from benchmarks.ops.work import Ceilings

_COPY_BYTES = 1 << 30
_MATRIX = 8192


def measure_ceilings(timer: GpuTimer, pinned: torch.Tensor) -> Ceilings:
    """Rates of single large calls.

    Args:
        timer: times them.
        pinned: pinned host memory, [n] uint8; up to 1 GiB of it is copied.
    """
    host = pinned[:_COPY_BYTES]
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    over_link = target[: host.numel()]

    def rate(amount: float, call: Callable[[], object]) -> float:
        return amount / timer.time(Timed([call], long=True))

    return Ceilings(
        fp8=_fp8_rate(timer),
        bf16=_bf16_rate(timer),
        device=rate(2 * _COPY_BYTES, lambda: target.copy_(source)),
        to_device=rate(host.numel(), lambda: over_link.copy_(host, non_blocking=True)),
        to_host=rate(host.numel(), lambda: host.copy_(over_link, non_blocking=True)),
    )


def _bf16_rate(timer: GpuTimer) -> float:
    left, right = (
        torch.randn(_MATRIX, _MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    return _product_rate(timer.time(Timed([lambda: left @ right], long=True)))


def _fp8_rate(timer: GpuTimer) -> float:
    left, right = (
        torch.randn(_MATRIX, _MATRIX, device="cuda").to(torch.float8_e4m3fn) for _ in range(2)
    )
    one = torch.ones((), device="cuda")

    def multiply() -> torch.Tensor:
        return torch._scaled_mm(left, right.T, one, one, out_dtype=torch.bfloat16)

    return _product_rate(timer.time(Timed([multiply], long=True)))


def _product_rate(seconds: float) -> float:
    return 2.0 * _MATRIX**3 / seconds
