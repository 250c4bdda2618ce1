"""The operations that break something, and those that mend it."""

import math
import time

from hisparse_sidecar.cli.stress.dealer import Operation
from hisparse_sidecar.cli.stress.run import Run
from hisparse_sidecar.cli.stress.segments import StoredPage

_BLOCK_BYTES = 4096
_LATE_SECONDS = 2.0  # more than a slow call takes
_CUT_SHARE = 0.1  # of a file, at most


def alloc(run: Run, operation: Operation) -> None:
    """Leases take the pages that are free."""
    run.server.ask("release")
    run.server.ask("lease", share=operation["share"])
    run.counts.faults["alloc"] += 1


def release(run: Run, _operation: Operation) -> None:
    """They come back, all of them."""
    run.server.ask("release")
    leased = run.server.ask("state")["core"]["host_pages_leased"]
    if leased:
        run.counts.remark(f"{leased} pages are leased after every lease was released")


def arm(run: Run, operation: Operation) -> None:
    """Failpoints of the file tier, some calls of which fail or take long from now on."""
    kind, fault = operation["do"], {key: operation[key] for key in operation if key != "do"}
    if kind == "enospc":
        run.evicts = run.may_evict = True
    if kind == "slow":
        run.late_until = math.inf
    run.server.ask("arm", points=fault.pop("points"), fault=fault)
    run.counts.faults[kind] += 1


def disarm(run: Run, _operation: Operation) -> None:
    """The disk is well again."""
    run.server.ask("disarm")
    run.evicts = False
    if run.late_until == math.inf:
        run.late_until = time.monotonic() + _LATE_SECONDS


def kill(run: Run, operation: Operation) -> None:
    """SIGKILL, while the operations that follow are under way."""
    run.note_remote_faults(run.server.ask("state")["remote_faults"], is_last=True)
    run.server.kill_after(operation["after_seconds"])
    run.counts.faults["kill"] += 1


def corrupt(run: Run, operation: Operation) -> None:
    """One file of the tier is damaged from outside: a bit, a block, or its end."""
    paths = [path for path in run.files.paths() if path.stat().st_size > 2 * _BLOCK_BYTES]
    if not paths:
        return
    path = paths[int(operation["file"] * len(paths))]
    pages, size = run.files.pages(path), path.stat().st_size
    start, end = _damaged_range(operation, size)
    # before the damage: it may be found at once
    hit = _pages_hit(pages, start, end)
    run.oracle.damage({page.payload for page in hit})
    run.may_lose = True
    with path.open("r+b") as file:
        if operation["how"] == "cut":
            file.truncate(start)
        else:
            file.seek(start)
            old = file.read(end - start)
            file.seek(start)
            file.write(bytes([old[0] ^ 1 << size % 8]) if len(old) == 1 else bytes(len(old)))
    run.files.damage(path, hit)
    run.counts.faults["corrupt"] += 1


def flip(run: Run, operation: Operation) -> None:
    """For the self check: one byte of a page that a sequence has is no longer right."""
    lives = [life for life in run.lives.values() if life.length and not life.rests]
    if lives:
        life = lives[int(operation["pick"] * len(lives))]
        run.server.ask("flip", sequence=life.handle, position=life.length // 2)
        run.counts.faults["flip"] += 1


def _damaged_range(operation: Operation, size: int) -> tuple[int, int]:
    place = int(operation["place"] * size)
    if operation["how"] == "flip":
        return place, place + 1
    if operation["how"] == "zero":
        block = place // _BLOCK_BYTES * _BLOCK_BYTES
        return block, min(size, block + _BLOCK_BYTES)
    return size - int(operation["place"] * _CUT_SHARE * size) - 1, size


def _pages_hit(pages: list[StoredPage], start: int, end: int) -> list[StoredPage]:
    is_head = start < _BLOCK_BYTES  # without it a file names no pages at all
    return [page for page in pages if is_head or (page.start < end and start < page.end)]
