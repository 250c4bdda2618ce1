"""Suite `stress`: ten minutes of `hisparse stress` with every fault for each seed, half an hour.

A run that finds anything ends the suite, with a replay file: what must be 0 is 0 in every results
file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from hisparse_sidecar.cli import output
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch
from hisparse_sidecar.cli.stress.progress import StressProgress
from hisparse_sidecar.cli.stress.run_stress import run_stress
from hisparse_sidecar.cli.stress.settings import FAULTS, TIERS, StressSettings

_SECONDS, _SESSIONS = 600.0, 4
_SEEDS = (1, 2, 3)
_DONE = ("seconds", "operations", "checked_promises")
_MUST_BE_0 = ("pages_lost_acknowledged", "wrong_bytes", "leaked_pages", "leaked_leases")
_TIMED = ("open", "prefill", "decode", "preempt", "resume", "flush")


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    for seed in _SEEDS:
        if stopwatch.wants(_case(seed)):
            settings = StressSettings(_SECONDS, seed, _SESSIONS, FAULTS, TIERS)
            with StressProgress(output.progress_console(), _SECONDS) as progress:
                report = run_stress(settings, None, Path(f"stress-{seed}.json"), progress)
            if not report["holds"]:
                raise ValueError(f"replay file {report['replay']}: {report['remarks']}")
            yield from to_measurements(report)


def to_measurements(report: dict[str, Any]) -> Iterator[Measurement]:
    """The rows of one run; `report` as `run_stress` gives it."""
    case = _case(report["seed"])

    def row(metric: str, value: float, better: Literal["higher", "lower"]) -> Measurement:
        return Measurement(case, metric.replace("_", " "), value, better)

    yield from (row(name, report[name], "higher") for name in _DONE)
    yield row("GB compared", report["checked_bytes"] / 1e9, "higher")
    faults, clients = report["faults_injected"].items(), report["clients"].items()
    yield from (row(f"faults: {kind}", count, "higher") for kind, count in faults)
    yield from (row(f"{kind} clients", count, "higher") for kind, count in sorted(clients))
    yield from (row(name, report[name], "lower") for name in _MUST_BE_0)
    for name in _TIMED:
        took = report["latency_us"][name]
        yield from (row(f"{name}, {share} us", took[share], "lower") for share in ("p50", "p99"))
    yield row("max recovery ms", report["recovery_ms"], "lower")


def _case(seed: int) -> str:
    return f"seed {seed}, {_SESSIONS} sessions, every fault, file and remote tier"


SUITE = Suite(
    name="stress",
    summary="10 minutes of hisparse stress for each of 3 seeds: faults, losses, latencies (30 min)",
    device="cpu",
    measure=_measure,
)
