"""Median and 99th percentile of warm runs."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of warm runs; with fewer than 100 of them p99 is the slowest."""

    num_runs: int
    median_seconds: float
    p99_seconds: float


@dataclass(frozen=True)
class Stopwatch:
    """Runs a function cold, then warm, and times the warm runs one by one.

    Attributes:
        num_warm_ups: untimed runs.
        num_runs: timed runs.
        cases: regular expression; of a suite with many cases only those that it finds are run.
    """

    num_warm_ups: int
    num_runs: int
    cases: str = ""

    def __post_init__(self) -> None:
        if self.num_warm_ups < 0 or self.num_runs < 1:
            raise ValueError(
                f"{self.num_warm_ups} warm-ups and {self.num_runs} runs asked for, "
                "at least 0 and 1 needed"
            )
        try:
            re.compile(self.cases)
        except re.error as error:
            raise ValueError(f"{self.cases!r} is no regular expression: {error}") from None

    def wants(self, case: str) -> bool:
        """Whether a case of that name is to be run."""
        return re.search(self.cases, case) is not None

    def time(self, function: Callable[[], object]) -> Timing:
        """Time calls of `function`; on a GPU each call is waited for."""
        for _ in range(self.num_warm_ups):
            function()
        return summarize([self._time_once(function) for _ in range(self.num_runs)])

    @staticmethod
    def _time_once(function: Callable[[], object]) -> float:
        _synchronize()
        start = time.perf_counter()
        function()
        _synchronize()
        return time.perf_counter() - start


def summarize(seconds: list[float]) -> Timing:
    """Median and nearest-rank 99th percentile of at least one duration."""
    ordered = sorted(seconds)
    rank = math.ceil(0.99 * len(ordered))
    return Timing(len(ordered), median(ordered), ordered[rank - 1])


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
