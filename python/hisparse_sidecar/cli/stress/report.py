"""What a run came to, as the object of `--json` and as a table."""

from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hisparse_sidecar.cli.output import simple_table
from hisparse_sidecar.cli.stress.counts import Counts
from hisparse_sidecar.cli.stress.settings import StressSettings
from hisparse_sidecar.cli.stress.soak_table import soak_table

_LOSSES = ("pages_lost_acknowledged", "wrong_bytes", "leaked_pages", "leaked_leases")


def to_json(
    settings: StressSettings, counts: Counts, soak: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """The keys that the command line promises, and more; `soak` as `soak.to_json` gives it."""
    return {
        "seed": settings.seed,
        "operations": sum(counts.operations.values()),
        "faults_injected": {kind: counts.faults[kind] for kind in settings.faults},
        "never_injected": [kind for kind in settings.faults if not counts.faults[kind]],
        "pages_lost_acknowledged": counts.pages_lost,
        "wrong_bytes": counts.wrong_bytes,
        "leaked_pages": counts.leaked_pages,
        "leaked_leases": counts.leaked_leases,
        "latency_us": counts.latency_us(),
        "recovery_ms": round(max(counts.recovery_ms), 1) if counts.recovery_ms else None,
        "restart_ms": round(max(counts.restart_ms), 1) if counts.restart_ms else None,
        "seconds": round(seconds, 1),
        "sessions": settings.sessions,
        "tiers": list(settings.tiers),
        "clients": dict(counts.clients),
        "outcomes": dict(sorted(counts.operations.items())),
        "checked_bytes": counts.checked_bytes,
        "checked_promises": counts.checked_promises,
        "found_tokens": counts.hits,
        "soak": soak,
        "remarks": counts.remarks,
        "holds": counts.holds,
    }


def tables(report: dict[str, Any]) -> list[RenderableType]:
    """Operations, faults, what the server did over time, and the verdict."""
    return [_operations(report), _faults(report), soak_table(report["soak"]), _verdict(report)]


def _operations(report: dict[str, Any]) -> Table:
    title = f"{report['operations']:,} operations, seed {report['seed']}, {report['seconds']} s"
    table = simple_table(title, "call", "calls", "p50", "p99", "refused")
    for name, took in report["latency_us"].items():
        refused = report["outcomes"].get(f"{name} refused", 0)
        times = [f"{took[share] / 1e3:.2f} ms" for share in ("p50", "p99")]
        table.add_row(name, f"{took['count']:,}", *times, f"{refused:,}")
    return table


def _faults(report: dict[str, Any]) -> Table:
    table = simple_table("faults and losses", "", "")
    for kind, count in report["faults_injected"].items():
        style = None if count else "yellow"
        table.add_row(f"{kind}, injected", f"{count:,}", style=style)
    for kind, count in sorted(report["clients"].items()):
        table.add_row(f"{kind} clients", f"{count:,}")
    table.add_row("compared with the oracle", f"{report['checked_bytes'] / 1e9:.2f} GB")
    table.add_row("promises of a flush, asked for", f"{report['checked_promises']:,}")
    if report["recovery_ms"] is not None:
        table.add_row("recovery, longest", f"{report['recovery_ms']:,} ms")
    for name in _LOSSES:
        found = "not known" if report[name] is None else f"{report[name]:,}"
        table.add_row(name.replace("_", " "), found, style="bold")
    return table


def _verdict(report: dict[str, Any]) -> Text:
    if report["holds"] and report["never_injected"]:
        words = f"nothing was lost; never injected: {', '.join(report['never_injected'])}"
        return Text(words, style="yellow")
    if report["holds"]:
        return Text("nothing was lost", style="green")
    return Text("\n".join(report["remarks"]), style="red")
