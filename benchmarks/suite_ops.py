"""Suite `ops`: every tensor op on one GPU, beside DeepGEMM, FlashMLA, SGLang and torch.

Each case is checked first, ours against its reference on some rows and the peer against ours, on
the tensors that are timed; a wrong result is an error row. Times are medians with the L2 cache
emptied before: of single calls where one takes long, else of a CUDA graph of many calls that go
through different inputs. Operations and bytes are counted from shapes, each byte once; the ceilings
are large copies and matrix products of the same run.
"""

from collections.abc import Iterator

from benchmarks.ops.roofline import plot_roofline
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    from benchmarks.ops.run_cases import run_cases

    yield from run_cases(stopwatch)


SUITE = Suite(
    name="ops",
    summary="every tensor op on a GPU (us, rates, share of the ceiling), beside peers (minutes)",
    device="cuda",
    measure=_measure,
    plot=plot_roofline,
)
