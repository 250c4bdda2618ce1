"""Suite `ranks`: the plan of a decode step by ranks that share a host pool, beside a manager alone.

A rank's time runs from its call until it has every page; the slowest rank of each step counts,
of all ranks, and of those that follow.
"""

from collections.abc import Iterator

from benchmarks.ranks.plans import time_alone, time_ranks
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch, Timing, summarize

_CONTEXT = 4096
_NUM_RANKS = (2, 4, 8)
_NUM_SEQUENCES = (1, 64, 256)
_PEER = "manager alone"


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    num_steps = stopwatch.num_warm_ups + stopwatch.num_runs
    for num_sequences in _NUM_SEQUENCES:
        sizes = num_sequences, _CONTEXT, num_steps
        alone = _warm(stopwatch, time_alone(*sizes))
        for num_ranks in _NUM_RANKS:
            case = f"{num_ranks} ranks, {num_sequences} sequences of {_CONTEXT} tokens"
            by_rank = time_ranks(num_ranks, *sizes)
            parts = {"": by_rank, "rank 0's ": by_rank[:1], "a follower's ": by_rank[1:]}
            for whose, seconds in parts.items():
                slowest = [max(step) for step in zip(*seconds, strict=True)]
                yield from _compared(case, whose, _warm(stopwatch, slowest), alone)


def _compared(case: str, whose: str, ranks: Timing, alone: Timing) -> Iterator[Measurement]:
    for statistic in ("median", "p99"):
        ours, peer = (getattr(timing, f"{statistic}_seconds") * 1e6 for timing in (ranks, alone))
        yield Measurement(case, f"{whose}{statistic} us", ours, "lower", _PEER, peer)


def _warm(stopwatch: Stopwatch, seconds: list[float]) -> Timing:
    return summarize(seconds[stopwatch.num_warm_ups :])


SUITE = Suite(
    name="ranks",
    summary="plan of a decode step by ranks of one host pool (us), beside a manager alone",
    device="cpu",
    measure=_measure,
)
