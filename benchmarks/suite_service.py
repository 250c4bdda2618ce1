"""Suite `service`: what clients of a real server wait while something is short, slow or ends.

A case lasts two seconds for each run; 30 runs are a minute of it. The client is one event loop
beside the server on the same machine, so on few cores its own work is in the times. Latencies of
calls that are made at a rate run from the moment at which each was due.
"""

from collections.abc import Callable, Iterator

from benchmarks.service import (
    drain,
    flood,
    full_disk,
    full_pool,
    many_sessions,
    slow_disk,
    slow_readers,
)
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch

_SECONDS_A_RUN = 2.0
_CASES: dict[str, Callable[[float], Iterator[Measurement]]] = {
    module.CASE: module.measure
    for module in (full_pool, full_disk, slow_disk, slow_readers, many_sessions, flood, drain)
}


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    for case, measure in _CASES.items():
        if stopwatch.wants(case):
            yield from measure(_SECONDS_A_RUN * stopwatch.num_runs)


SUITE = Suite(
    name="service",
    summary="a server's calls while pool or disk are full, disk or readers slow, tenants flood",
    device="cpu",
    measure=_measure,
)
