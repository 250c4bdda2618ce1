"""Run all cases in order: ceilings, then each op; what cannot go on is said in a row."""

import gc
from collections.abc import Iterator
from dataclasses import fields

import torch

from benchmarks.ops.attention_cases import attention_cases
from benchmarks.ops.case import Case, context_is_lost, measure_case
from benchmarks.ops.ceilings import measure_ceilings
from benchmarks.ops.copy_cases import copy_cases
from benchmarks.ops.logits_cases import logits_cases
from benchmarks.ops.peers import Peers
from benchmarks.ops.pinned import PinnedPool
from benchmarks.ops.pooled_cases import pooled_cases
from benchmarks.ops.refine_cases import refine_cases
from benchmarks.ops.row_cases import row_cases
from benchmarks.ops.selection_cases import selection_cases
from benchmarks.ops.swap_cases import swap_cases
from benchmarks.ops.timing import GpuTimer
from benchmarks.ops.topk_cases import topk_cases
from benchmarks.ops.work import Ceilings
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.timing import Stopwatch

_CEILING_UNITS = {"fp8": ("TFLOP/s", 1e12), "bf16": ("TFLOP/s", 1e12)}


def all_cases(peers: Peers, pool: PinnedPool) -> Iterator[Case]:
    """Every case: first whole selections, then each op in the order of a step."""
    yield from selection_cases(peers)
    yield from row_cases()
    yield from logits_cases(peers)
    yield from refine_cases()
    yield from topk_cases(peers)
    yield from pooled_cases()
    yield from swap_cases(peers, pool)
    yield from copy_cases(pool)
    yield from attention_cases(peers)


def run_cases(stopwatch: Stopwatch) -> Iterator[Measurement]:
    """Measure ceilings, then every case that the stopwatch wants."""
    timer = GpuTimer(stopwatch.num_warm_ups, stopwatch.num_runs)
    torch.manual_seed(0)
    pool, peers = PinnedPool(), Peers()
    for name, reason in peers.absent():
        yield Measurement(name, f"absent: {reason[:160]}", 0.0, "higher")
    ceilings = measure_ceilings(timer, pool.host)
    yield from _ceiling_rows(ceilings)
    wanted = [case for case in all_cases(peers, pool) if stopwatch.wants(case.name)]
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
