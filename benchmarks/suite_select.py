"""Suite `select`: whole selections to final indices on one GPU, beside DeepGEMM and SGLang's top-k.

Each contender is checked first against the fp32 reference on the same stored keys, then timed in
the same run. Ratios come with their 10th and 90th percentile over the repetitions.
"""

from collections.abc import Iterator

from benchmarks.select.plot import plot_lengths
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    from benchmarks.ops.run_suite import run_suite
    from benchmarks.select.all_cases import all_cases

    yield from run_suite(stopwatch, all_cases)


SUITE = Suite(
    name="select",
    summary="selection to final indices on a GPU by length (us), beside DeepGEMM + top-k (minutes)",
    device="cuda",
    measure=_measure,
    plot=plot_lengths,
)
