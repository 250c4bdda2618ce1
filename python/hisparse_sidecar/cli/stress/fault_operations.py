"""The operations that break something, and those that mend it."""

import math
import os
import time
from pathlib import Path
from typing import BinaryIO

from hisparse_sidecar.cli.stress.dealer import Operation
from hisparse_sidecar.cli.stress.promises import checkpoint
from hisparse_sidecar.cli.stress.run import Run
from hisparse_sidecar.cli.stress.segments import StoredPage

_BLOCK_BYTES = 4096
_LEAST_BYTES = 2 * _BLOCK_BYTES  # a file without a page to damage has no more
_LATE_SECONDS = 2.0  # more than a slow call takes
_CUT_SHARE = 0.1  # of a file, at most


def alloc(run: Run, operation: Operation) -> str:
    """Leases take the pages that are free."""
    run.server.ask("release")
    if not run.server.ask("lease", share=operation["share"]):
        return "skipped"
    run.counts.faults["alloc"] += 1
    return "done"


def release(run: Run, _operation: Operation) -> None:
    """They come back, all of them."""
    run.server.ask("release")
    leased = run.server.ask("state")["core"]["host_pages_leased"]
    if leased:
        run.counts.leaked_leases = leased
        run.counts.remark(f"{leased} pages are leased after every lease was released")


def arm(run: Run, operation: Operation) -> None:
    """Failpoints of the file tier, some calls of which fail or take long from now on."""
    kind, fault = operation["do"], {key: operation[key] for key in operation if key != "do"}
    if kind == "enospc":
        run.evicts = True
    if kind == "slow":
        run.late_until = math.inf
    run.server.ask("arm", points=fault.pop("points"), fault=fault)


def disarm(run: Run, _operation: Operation) -> None:
    """The disk is well again."""
    run.server.ask("disarm")
    run.note_state()
    run.evicts = False
    if run.late_until == math.inf:
        run.late_until = time.monotonic() + _LATE_SECONDS


def kill(run: Run, operation: Operation) -> None:
    """SIGKILL, while the operations that follow are under way."""
    run.note_state(is_last=True)
    run.server.kill_after(operation["after_seconds"])


def corrupt(run: Run, operation: Operation) -> str:
    """One file of the tier is damaged from outside: a bit, a block, or its end."""
    paths = run.files.paths(more_than=_LEAST_BYTES)
    if not paths:
        return "skipped"
    path = paths[int(operation["file"] * len(paths))]
    try:
        with path.open("r+b") as file:
            return _corrupt_file(run, operation, path, file)
    except FileNotFoundError:  # the tier has given it up since
        return "skipped"


def _corrupt_file(run: Run, operation: Operation, path: Path, file: BinaryIO) -> str:
    pages, found = run.files.pages(path), os.fstat(file.fileno())
    if not found.st_nlink or found.st_size <= _LEAST_BYTES:
        return "skipped"  # given up, or cut by the tier, while it was read: the pages are not its
    start, end = _damaged_range(operation, found.st_size)
    # before the damage: it may be found at once
    hit = _pages_hit(pages, start, end)
    run.oracle.damage({page.payload for page in hit})
    run.may_lose = True
    is_changed = _damage(file, operation["how"], start, end)
    run.files.damage(path, hit)
    run.counts.faults["corrupt"] += is_changed
    return "done" if is_changed else "skipped"


def flip(run: Run, operation: Operation) -> str:
    """For the self check: one byte of a page that a sequence has is no longer right."""
    lives = [life for life in run.lives.values() if life.length and not life.rests]
    if not lives:
        return "skipped"
    life = lives[int(operation["pick"] * len(lives))]
    run.server.ask("flip", sequence=life.handle, position=life.length // 2)
    return "done"


def lose(run: Run, _operation: Operation) -> str:
    """For the self check: a file goes that has a page which a flush has acknowledged."""
    if checkpoint(run, drains=True) != "done":
        return "skipped"
    promised = {*run.oracle.identities(run.oracle.acknowledged).values()}
    for path in run.files.paths():
        if any(page.identity in promised and page.is_live for page in run.files.pages(path)):
            path.unlink()
            return "done"
    return "skipped"


def leak(run: Run, _operation: Operation) -> None:
    """For the self check: somebody takes a page and never gives it back."""
    run.server.ask("leak")


def _damage(file: BinaryIO, how: str, start: int, end: int) -> bool:
    """Whether the file has other bytes by it."""
    if how == "cut":
        return file.truncate(start) < end
    file.seek(start)
    old = file.read(end - start)
    if not old:  # the tier has cut it since
        return False
    new = bytes([old[0] ^ 1 << start % 8]) if how == "flip" else bytes(len(old))
    file.seek(start)
    file.write(new)
    return new != old


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
