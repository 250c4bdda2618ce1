"""Time work on the GPU: single long calls, or a CUDA graph of many short ones.

Before every timed piece a buffer of 256 MiB is overwritten, which empties the L2 cache, as
`triton.testing.do_bench` does. The work of that write also hides the launch from the clock.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

_FLUSH_BYTES = 256 << 20
_MIN_GRAPH_CALLS = 16
_MOST_SECONDS, _FEWEST_RUNS = 1.0, 5  # of one contender


@dataclass(frozen=True)
class Timed:
    """Something to time.

    Attributes:
        calls: the same work on other inputs each, so that a graph of them does not find its own
            inputs in the L2 cache.
        reset: puts back the state that the calls change; they then run in order, once.
        long: a call of a fraction of a millisecond or more, timed alone and outside of a graph.
    """

    calls: Sequence[Callable[[], object]]
    reset: Callable[[], object] | None = None
    long: bool = False


@dataclass(frozen=True)
class GpuTimer:
    """Seconds of one call, in each of `num_runs` timed pieces after `num_warm_ups` untimed ones.

    Where the pieces would take over a second together, of fewer, but of 5 at least.
    """

    num_warm_ups: int
    num_runs: int

    def time(self, timed: Timed) -> float:
        """Seconds of one call, the median of the pieces."""
        return median(self.repeat(timed))

    def repeat(self, timed: Timed) -> list[float]:
        """Seconds of one call in each piece."""
        _restore(timed)
        for call in timed.calls:  # compiles, and plans what is planned on the first call
            call()
        if timed.long:
            return self._time_pieces(timed, timed.calls[0], 1)
        repeats = 1 if timed.reset else -(-_MIN_GRAPH_CALLS // len(timed.calls))
        graph = _capture([*timed.calls] * repeats, timed)
        return self._time_pieces(timed, graph.replay, repeats * len(timed.calls))

    def _time_pieces(
        self, timed: Timed, piece: Callable[[], object], num_calls: int
    ) -> list[float]:
        flushed = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        warm = _piece_seconds(timed, piece, flushed, max(self.num_warm_ups, 1))
        runs = runs_that_fit(self.num_runs, warm[-1])
        return [seconds / num_calls for seconds in _piece_seconds(timed, piece, flushed, runs)]


def runs_that_fit(wanted: int, seconds: float) -> int:
    """As many runs as are wanted; fewer where one takes so long that all would take too long."""
    return min(wanted, max(_FEWEST_RUNS, int(_MOST_SECONDS / max(seconds, 1e-9))))


def _piece_seconds(
    timed: Timed, piece: Callable[[], object], flushed: torch.Tensor, count: int
) -> list[float]:
    events = []
    for _ in range(count):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        _restore(timed)
        flushed.zero_()
        start.record()
        piece()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [float(start.elapsed_time(end)) / 1e3 for start, end in events]


def _capture(calls: Sequence[Callable[[], object]], timed: Timed) -> torch.cuda.CUDAGraph:
    torch.cuda.synchronize()
    _restore(timed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def _restore(timed: Timed) -> None:
    if timed.reset:
        timed.reset()
