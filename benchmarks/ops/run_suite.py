"""Run the cases of a suite in order: ceilings first; what cannot go on is said in a row."""

import gc
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields

import torch

from benchmarks.ops.case import Case, context_is_lost, measure_case
from benchmarks.ops.ceilings import measure_ceilings
from benchmarks.ops.peers import LOADERS, Peers
from benchmarks.ops.pinned import PinnedPool
from benchmarks.ops.timing import GpuTimer
from benchmarks.ops.work import Ceilings
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.timing import Stopwatch

_CEILING_UNITS = {"fp8": ("TFLOP/s", 1e12), "bf16": ("TFLOP/s", 1e12)}


def run_suite(
    stopwatch: Stopwatch,
    list_cases: Callable[[Peers, PinnedPool], Iterator[Case]],
    peer_names: Collection[str] = tuple(LOADERS),
) -> Iterator[Measurement]:
    """Measure ceilings, then every case that the stopwatch wants, beside these peers."""
    timer = GpuTimer(stopwatch.num_warm_ups, stopwatch.num_runs)
    torch.manual_seed(0)
    pool, peers = PinnedPool(), Peers({name: LOADERS[name] for name in peer_names})
    for name, reason in peers.absent():
        yield Measurement(name, f"absent: {reason[:160]}", 0.0, "higher")
    ceilings = measure_ceilings(timer, pool.host)
    yield from _ceiling_rows(ceilings)
    wanted = [case for case in list_cases(peers, pool) if stopwatch.wants(case.name)]
    for case in wanted:
        yield from measure_case(case, timer, ceilings)
        gc.collect()
        if context_is_lost():
            yield Measurement(case.name, "error: lost the GPU, later cases not run", 0.0, "higher")
            return
        torch.cuda.empty_cache()


def _ceiling_rows(ceilings: Ceilings) -> Iterator[Measurement]:
    for field in fields(ceilings):
        metric, unit = _CEILING_UNITS.get(field.name, ("GB/s", 1e9))
        rate = getattr(ceilings, field.name) / unit
        yield Measurement(f"ceiling {field.name}", metric, rate, "higher")
