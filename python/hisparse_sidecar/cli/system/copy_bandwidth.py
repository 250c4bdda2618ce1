"""Measure how fast memory is copied: between host and GPU where there is one, else on the host."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import torch

_NUM_WARM_UPS = 2
_NUM_RUNS = 9


@dataclass(frozen=True)
class CopyBandwidth:
    """Median of warm copies. Bytes are those copied, counted once (not read plus write)."""

    route: str
    copied_bytes: int
    num_runs: int
    median_seconds: float
    gigabytes_per_second: float

    def to_json(self) -> dict[str, object]:
        """All fields."""
        return asdict(self)


def measure_copies(copied_bytes: int) -> list[CopyBandwidth]:
    """Bandwidth of each route of this machine.

    Args:
        copied_bytes: size of the one contiguous copy.

    Raises:
        ValueError: the size is not positive.
    """
    if copied_bytes < 1:
        raise ValueError(f"copy of {copied_bytes} bytes asked for, at least 1 needed")
    if torch.cuda.is_available():
        return _measure_gpu(copied_bytes)
    source = torch.ones(copied_bytes, dtype=torch.uint8)
    target = torch.empty_like(source)
    return [_measure("host to host", copied_bytes, lambda: target.copy_(source))]


def _measure_gpu(copied_bytes: int) -> list[CopyBandwidth]:
    pinned = torch.ones(copied_bytes, dtype=torch.uint8, pin_memory=True)
    on_gpu = torch.empty(copied_bytes, dtype=torch.uint8, device="cuda")
    return [
        _measure("pinned host to GPU", copied_bytes, lambda: _synced_copy(on_gpu, pinned)),
        _measure("GPU to pinned host", copied_bytes, lambda: _synced_copy(pinned, on_gpu)),
    ]


def _synced_copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()


def _measure(route: str, copied_bytes: int, copy: Callable[[], object]) -> CopyBandwidth:
    for _ in range(_NUM_WARM_UPS):
        copy()
    seconds = median(_time(copy) for _ in range(_NUM_RUNS))
    return CopyBandwidth(route, copied_bytes, _NUM_RUNS, seconds, copied_bytes / seconds / 1e9)


def _time(copy: Callable[[], object]) -> float:
    start = time.perf_counter()
    copy()
    return time.perf_counter() - start
