"""Suite `stress`: ten minutes of `hisparse stress` for each of four seeds, 40 minutes.

Every fault for the first three; for the last one what kills no server and fills no disk, so that
one server lives long enough for its memory, descriptors and threads to be measured: the soak.

A run that finds anything ends the suite, with a replay file: what must be 0 is 0 in every results
file.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

from hisparse_sidecar.cli import output
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch
from hisparse_sidecar.cli.stress.progress import StressProgress
from hisparse_sidecar.cli.stress.run_stress import run_stress
from hisparse_sidecar.cli.stress.settings import FAULTS, TIERS, StressSettings
from hisparse_sidecar.cli.stress.soak import longest

_SECONDS, _SESSIONS = 600.0, 4
_SOAK_FAULTS = ("alloc", "io", "corrupt", "slow", "remote")
_RUNS = ((1, FAULTS), (2, FAULTS), (3, FAULTS), (4, _SOAK_FAULTS))
_DONE = ("seconds", "operations", "checked_promises")
_MUST_BE_0 = ("pages_lost_acknowledged", "wrong_bytes", "leaked_pages", "leaked_leases")
_MEMORY = {"rss_mib": "RSS MiB", "anonymous_mib": "anonymous MiB", "malloc_mib": "malloc MiB"}
_TIMED = ("open", "prefill", "decode", "preempt", "resume", "flush")


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    for seed, faults in _RUNS:
        if stopwatch.wants(_case(seed, faults)):
            settings = StressSettings(_SECONDS, seed, _SESSIONS, faults, TIERS)
            with StressProgress(output.progress_console(), _SECONDS) as progress:
                report = run_stress(settings, None, Path(f"stress-{seed}.json"), progress)
            if not report["holds"]:
                raise ValueError(f"replay file {report['replay']}: {report['remarks']}")
            yield from to_measurements(report)


def to_measurements(report: dict[str, Any]) -> Iterator[Measurement]:
    """The rows of one run; `report` as `run_stress` gives it."""
    case = _case(report["seed"], report["faults_injected"])

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
    yield from (row(name, value, "lower") for name, value in _over_time(report["soak"]))


def _over_time(soak: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Rows of the soak; those of the process need a server that has lived for two minutes."""
    server = longest(soak)
    if server is not None:
        yield "seconds measured of one server", server["measured_seconds"]
        for name, words in _MEMORY.items():
            if server[name] is not None:
                yield f"{words}, max", server[name]["max"]
                yield f"{words}/h", server[name]["slope_per_hour"]
                yield f"{words}/h, standard error", server[name]["slope_error"]
        for name in ("fds", "threads"):
            yield from ((f"{name}, {end}", server[name][end]) for end in ("min", "max"))
    yield "oldest lease s, at most", soak["oldest_lease_seconds"]
    if soak["hit_rate"] is not None:
        yield "hit rate drift points", soak["hit_rate"]["drift_points"]
        yield "hit rate drift points, standard error", soak["hit_rate"]["drift_error"]
        yield "open p50 drift %", soak["open_p50_us"]["drift_percent"]


def _case(seed: int, faults: Collection[str]) -> str:
    kinds = "every fault" if set(faults) == set(FAULTS) else f"faults {' '.join(faults)}"
    return f"seed {seed}, {_SESSIONS} sessions, {kinds}, file and remote tier"


SUITE = Suite(
    name="stress",
    summary="10 minutes of hisparse stress for each of 4 seeds: faults, losses, soak (40 min)",
    device="cpu",
    measure=_measure,
)
