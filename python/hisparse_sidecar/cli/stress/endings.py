"""How servers end: killed, and found again by the next; or in order, with nothing left."""

import math
import time

from hisparse_sidecar.cli.stress.checks import audit, compare
from hisparse_sidecar.cli.stress.fault_operations import disarm
from hisparse_sidecar.cli.stress.lives import Life
from hisparse_sidecar.cli.stress.promises import (
    check_files,
    check_promises,
    check_saved,
    checkpoint,
)
from hisparse_sidecar.cli.stress.run import Run
from hisparse_sidecar.cli.stress.sequence_operations import resume
from hisparse_sidecar.errors import DeadlinePassed, DeviceArenaFull, HostPoolFull, TierDown

_PATIENCE_SECONDS, _LEAK_SECONDS = 30.0, 2.0
_POLL_SECONDS = 0.05


def recover(run: Run) -> None:
    """After a kill: what was promised is on the disk, and the next server finds it."""
    began = time.monotonic()
    run.server.wait_until_dead()
    run.end_sessions()
    run.oracle.restart()
    if run.evicts:
        run.given_up = math.inf  # nobody has asked since
    if "file" in run.settings.tiers:
        check_files(run)
    run.evicts, run.pages_left, run.given_up, run.late_until = False, 0.0, 0.0, 0.0
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
    _save_all(run)
    shared = _close_all(run)
    _save_all(run)
    check_saved(run, shared)
    run.end_sessions()
    _check_leaks(run)
    run.note_state(is_last=True)
    run.server.kill_after(0.0)
    recover(run)
    code = run.server.stop()
    if code != 0:
        run.counts.remark(f"the server ended with {code}, must end with 0")


def _close_all(run: Run) -> set[str]:
    """Every sequence is compared and closed; digests of the pages that others may find of them."""
    shared: set[str] = set()
    for life in sorted(run.lives.values(), key=lambda life: life.rests):
        if life.rests:
            _wake(run, life)
        compare(run, life)
        shared |= set(run.oracle.shared(life))
        run.session(life.client).close_sequence(life.handle)
        del run.lives[life.number]
    return shared


def _save_all(run: Run) -> None:
    """The disk is well: once the tier is tried again, what is left is written and promised."""
    if "file" not in run.settings.tiers:
        return
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


def _check_leaks(run: Run) -> None:
    deadline = time.monotonic() + _LEAK_SECONDS
    while True:
        run.server.ask("evict")
        state = run.server.ask("state")
        core, prefix = state["core"], state["prefix"]
        run.counts.leaked_pages = core["host_pages_total"] - core["host_pages_free"]
        run.counts.leaked_leases = sum(prefix[kind] for kind in ("leases", "pins", "holds"))
        run.counts.leaked_leases += core["host_pages_leased"]
        rows = {name: core[name] for name in core if name.endswith("_used") and core[name]}
        is_clean = not (run.counts.leaked_pages or run.counts.leaked_leases or rows)
        if is_clean or time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    if not is_clean:
        found = f"{run.counts.leaked_pages} pages, {run.counts.leaked_leases} leases, {rows}"
        run.counts.remark(f"left when everything was closed: {found}")
