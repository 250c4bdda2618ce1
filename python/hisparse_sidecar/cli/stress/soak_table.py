"""What the servers did over time, as a table."""

from typing import Any

from rich.table import Table

from hisparse_sidecar.cli.output import simple_table
from hisparse_sidecar.cli.stress.soak import longest

_MEMORY = {
    "rss_mib": "RSS",
    "anonymous_mib": "of it anonymous",
    "malloc_mib": "given out by malloc",
}


def soak_table(soak: dict[str, Any]) -> Table:
    """The longest-lived server, and the drifts of the run; `soak` as `soak.to_json` gives it."""
    seen = (
        f"the server over time, {soak['samples']:,} samples, {soak['interval_seconds']:g} s apart"
    )
    table = simple_table(seen, "", "")
    server = longest(soak)
    if server is not None:
        _add_server(table, server)
    else:
        table.add_row("memory, fds, threads", "not measured: no server lived for 2 minutes")
    table.add_row("oldest lease, at most", f"{soak['oldest_lease_seconds']:g} s")
    _add_drifts(table, soak)
    return table


def _add_server(table: Table, server: dict[str, Any]) -> None:
    measured, warm_up = server["measured_seconds"], server["warm_up_seconds"]
    what = f"server {server['generation']}, seconds measured"
    table.add_row(what, f"{measured:g}, after {warm_up:g} of warm-up")
    for name, words in _MEMORY.items():
        if server[name] is not None:
            table.add_row(words, _memory(server[name]))
    for name in ("fds", "threads"):
        found, style = server[name], "red" if server[name]["grew"] else None
        grew = ", growing" if found["grew"] else ""
        table.add_row(name, f"{found['min']} to {found['max']}{grew}", style=style)
    for name, found in server["pages"].items():
        table.add_row(f"pages known to {name}", f"{found['first']:,}, then {found['last']:,}")


def _memory(found: dict[str, float]) -> str:
    rate = f"{found['slope_per_hour']:+,.1f} ± {found['slope_error']:,.1f} MiB/h"
    return f"{found['min']:,.1f} to {found['max']:,.1f} MiB, {rate}"


def _add_drifts(table: Table, soak: dict[str, Any]) -> None:
    rates, times = soak["hit_rate"], soak["open_p50_us"]
    if rates is not None:
        shares = f"{rates['first_half']:.1%}, then {rates['last_half']:.1%}"
        drift = f"{rates['drift_points']:+.1f} ± {rates['drift_error']:.1f} points"
        table.add_row("pages of prompts found", f"{shares}: {drift}")
    if times is not None:
        halves = [f"{times[half] / 1e3:.2f} ms" for half in ("first_half", "last_half")]
        drift = f"{times['drift_percent']:+.1f} %"
        table.add_row("open, p50", f"{halves[0]}, then {halves[1]}: {drift}")
