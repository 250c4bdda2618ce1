"""Suite `step`: a decode step of one layer on one GPU, whole and by stage, beside the peers' chain.

The whole step is the sidecar's own `run_layer` for every layer of a small model, captured in one
CUDA graph; a stage is the ops that such a run calls, on the same tensors, in a graph of their own.
"""

from collections.abc import Iterator
from functools import partial

from benchmarks.step.plot import plot_stages
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    from benchmarks.ops.run_suite import run_suite
    from benchmarks.step.all_cases import all_cases
    from benchmarks.step.world import Worlds

    worlds = Worlds()
    try:
        yield from run_suite(stopwatch, partial(all_cases, worlds))
    finally:
        worlds.close()


SUITE = Suite(
    name="step",
    summary="a decode step of one layer on a GPU, whole and by stage (us), beside the peers' chain",
    device="cuda",
    measure=_measure,
    plot=plot_stages,
)
