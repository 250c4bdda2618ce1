"""How servers end: killed, and found again by the next; or in order, with nothing left."""

import time

from hisparse_sidecar.cli.stress.checks import (
    audit,
    check_files,
    check_promises,
    checkpoint,
    compare,
)
from hisparse_sidecar.cli.stress.fault_operations import disarm
from hisparse_sidecar.cli.stress.lives import Life
from hisparse_sidecar.cli.stress.run import Run
from hisparse_sidecar.cli.stress.sequence_operations import resume
from hisparse_sidecar.errors import DeadlinePassed, DeviceArenaFull, HostPoolFull, TierDown

_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.05


def recover(run: Run) -> None:
    """After a kill: what was promised is on the disk, and the next server finds it."""
    began = time.monotonic()
    run.server.wait_until_dead()
    run.end_sessions()
    run.oracle.restart()
    run.evicts, run.pages_left, run.late_until = False, 0.0, 0.0
    if "file" in run.settings.tiers:
        check_files(run, run.files.live_pages())
    run.server.start()
    run.counts.restart_ms.append(1e3 * (time.monotonic() - began))
    run.counts.recovery_ms.append(run.server.ask("state")["start_ms"])
    check_promises(run)


def end_run(run: Run) -> None:
    """Everything is compared once more, closed, and must then be free; what was promised is kept.

    The last server is killed, too: only the next one shows what was kept.
    """
    run.bystanders.wait()
    run.server.ask("release")
    if "file" in run.settings.tiers:
        disarm(run, {"do": "disarm"})
    audit(run)
    for life in [life for life in run.lives.values() if not life.rests]:
        _close(run, life)
    for life in list(run.lives.values()):
        _wake(run, life)
        _close(run, life)
    if "file" in run.settings.tiers:
        _save_all(run)
    run.end_sessions()
    _check_leaks(run)
    run.note_remote_faults(run.server.ask("state")["remote_faults"], is_last=True)
    run.server.kill_after(0.0)
    recover(run)
    code = run.server.stop()
    if code != 0:
        run.counts.remark(f"the server ended with {code}, must end with 0")


def _save_all(run: Run) -> None:
    """The disk is well: once the tier is tried again, what is left is written and promised."""
    time.sleep(max(0.0, run.late_until - time.monotonic()))
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while checkpoint(run, drains=True) != "done":
        if time.monotonic() > deadline:
            run.counts.remark(f"no flush ends well within {_PATIENCE_SECONDS} s of the last fault")
            return
        time.sleep(_POLL_SECONDS)


def _wake(run: Run, life: Life) -> None:
    """A tier that was spared is tried again after a while, so is the resuming."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            resume(run, {"do": "resume", "life": life.number})
            return
        except (TierDown, DeadlinePassed, HostPoolFull, DeviceArenaFull):
            if time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)


def _close(run: Run, life: Life) -> None:
    compare(run, life)
    run.session(life.client).close_sequence(life.handle)
    del run.lives[life.number]


def _check_leaks(run: Run) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        run.server.ask("evict")
        state = run.server.ask("state")
        core, prefix = state["core"], state["prefix"]
        run.counts.leaked_pages = core["host_pages_total"] - core["host_pages_free"]
        run.counts.leaked_leases = prefix["leases"] + prefix["pins"] + prefix["holds"]
        rows = {name: core[name] for name in core if name.endswith("_used") and core[name]}
        is_clean = not (run.counts.leaked_pages or run.counts.leaked_leases or rows)
        if is_clean or time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    if not is_clean:
        found = f"{run.counts.leaked_pages} pages, {run.counts.leaked_leases} leases, {rows}"
        run.counts.remark(f"left when everything was closed: {found}")
