"""The cases of the suite `ops`, in order."""

from collections.abc import Iterator

from benchmarks.ops.append_cases import append_cases
from benchmarks.ops.attention_cases import attention_cases
from benchmarks.ops.case import Case
from benchmarks.ops.copy_cases import copy_cases
from benchmarks.ops.logits_cases import logits_cases
from benchmarks.ops.paged_cases import paged_cases
from benchmarks.ops.peers import Peers
from benchmarks.ops.pinned import PinnedPool
from benchmarks.ops.pooled_cases import pooled_cases
from benchmarks.ops.refine_cases import refine_cases
from benchmarks.ops.rerank_cases import rerank_cases
from benchmarks.ops.row_cases import row_cases
from benchmarks.ops.run_suite import run_suite
from benchmarks.ops.swap_cases import swap_cases
from benchmarks.ops.topk_cases import topk_cases
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.timing import Stopwatch


def all_cases(peers: Peers, pool: PinnedPool) -> Iterator[Case]:
    """Every case: each op in the order of a step."""
    yield from row_cases()
    yield from append_cases(pool)
    yield from paged_cases()
    yield from logits_cases(peers)
    yield from refine_cases()
    yield from rerank_cases()
    yield from topk_cases(peers)
    yield from pooled_cases()
    yield from swap_cases(peers, pool)
    yield from copy_cases(pool)
    yield from attention_cases(peers)


def run_cases(stopwatch: Stopwatch) -> Iterator[Measurement]:
    """Measure ceilings, then every case that the stopwatch wants."""
    yield from run_suite(stopwatch, all_cases)
