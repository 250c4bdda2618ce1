"""What a flush has promised: prompts find those pages, unless they were given up for want of room.

A promise is about the name that prompts lead to. The file tier may give up any page for room but
the last copy of one that a sequence rests on, or that a lease names: so a promised page may go, but
only as one of those that the server says it has given up, only if the tier does not claim to have
it, and never from a sequence that rests.
"""

import math
import time
from collections.abc import Iterable

from hisparse_sidecar.cli.stress.checks import compare
from hisparse_sidecar.cli.stress.lives import Life
from hisparse_sidecar.cli.stress.oracle import KnownPage
from hisparse_sidecar.cli.stress.run import Run
from hisparse_sidecar.client import RemoteSession
from hisparse_sidecar.errors import DeadlinePassed, TierDown, TierFull

_FLUSH_SECONDS = 5.0
_MOST_PROMISES = 40
_TRIES = 3


def checkpoint(run: Run, *, drains: bool = False) -> str:
    """Flushes, and notes which pages the file tier has promised by it.

    Returns:
        "done", "refused" where a tier that was made to fail has said so, or "unsure".
    """
    check_files(run)
    check_rests(run)
    left = None
    try:
        with run.timed("flush"):
            left = _drain(run) if drains else None
            before = _found(run)
            run.server.ask("flush", seconds=_FLUSH_SECONDS)
    except (TierDown, DeadlinePassed):
        return "refused"
    except TierFull:
        if not run.evicts:
            raise
        return "refused"
    if time.monotonic() < run.late_until:
        return "unsure"  # a put that was given up may be on the disk, and will be dropped
    found = before & _found(run)
    # one that could not be marked dead is still there to a reader of the files
    run.oracle.acknowledge(found & _claimed(run, found))
    if left is not None:
        run.note_state()
        run.given_up = run.pages_left - left
    return "done"


def _drain(run: Run) -> float:
    """Moves every idle page down; how many pages were given up before what is in the files now."""
    run.server.ask("drain", seconds=_FLUSH_SECONDS)
    run.note_state()
    left = run.pages_left
    run.server.ask("drain", seconds=_FLUSH_SECONDS)  # takes out what was given up by then
    return left


def check_files(run: Run) -> None:
    """Pages that were promised must be on the disk, unless they were given up for want of room."""
    found, promised = _found(run), run.oracle.acknowledged - run.oracle.damaged
    if not run.server.is_killed:
        run.note_state()  # after the look: a page is counted before it goes
    gone = promised - found
    lost = _lost(run, gone)
    run.given_up -= len(gone - lost)
    run.oracle.acknowledged -= gone
    _count_lost(run, lost, "acknowledged by a flush, and not on the disk")


def check_saved(run: Run, digests: set[str]) -> None:
    """A drain has ended well, and nobody had these pages: all of them must be on the disk."""
    tiers = run.note_state()["tiers"]
    if "file" not in tiers or _is_elsewhere(tiers) or "corrupt" in run.settings.faults:
        return
    # a sequence keeps a page to itself while others have its name, which may be given up meanwhile
    run.given_up = run.pages_left
    lost = _lost(run, digests - _found(run))
    _count_lost(run, lost, "idle when a drain ended well, and not on the disk")


def check_rests(run: Run) -> None:
    """A sequence that rests has each full page in the host pool or in a file, by whatever name."""
    resting = [life for life in run.lives.values() if life.rests]
    if not resting or run.may_lose or _is_elsewhere(run.server.ask("state")["tiers"]):
        return
    missing = {name: life for life in resting for name in run.oracle.full_pages(life)}
    for _ in range(_TRIES):  # a page may move while we look
        there = {*run.server.ask("host_pages"), *run.files.live_pages().values()}
        missing = {name: life for name, life in missing.items() if name not in there}
    run.counts.pages_lost += len(missing)
    for life in {life.number: life for life in missing.values()}.values():
        run.counts.remark(f"sequence {life.number} rests, and some of its pages are nowhere")


def check_promises(run: Run) -> None:
    """Prompts are opened whose pages a flush has acknowledged: all of them must be found."""
    promised = run.oracle.promised()
    step = max(1, len(promised) // _MOST_PROMISES)
    with run.server.connect() as session:
        for page in promised[run.server.generation % step :: step]:
            run.counts.checked_promises += 1
            found = max(_cached_tokens(run, session, page) for _ in range(_TRIES))
            if found < page.end:
                lost = (page.end - found) // 64
                run.counts.pages_lost += lost
                what = f"{page.end} tokens of tenant {page.tenant!r} were acknowledged"
                tiers = run.server.ask("state")["tiers"]
                run.counts.remark(f"{what}, {found} of them are found; tiers: {tiers}")


def _found(run: Run) -> set[str]:
    """Digests of the pages that prompts find in the files."""
    return run.oracle.findable(run.files.live_pages())


def _claimed(run: Run, digests: Iterable[str]) -> set[str]:
    """Those of the pages that the file tier says it has."""
    if run.server.is_killed:
        return set()
    names = run.oracle.identities(digests)
    held = run.server.ask("holds", names=[name.hex() for name in names.values()])
    return {digest for digest, is_held in zip(names, held, strict=True) if is_held}


def _lost(run: Run, gone: set[str]) -> set[str]:
    """Those of the pages that are not in the files, and were not given up either."""
    claimed = _claimed(run, gone)
    gone = gone - _found(run)  # one may have been moved while we looked
    return gone & claimed if len(gone) <= run.given_up else gone


def _count_lost(run: Run, lost: set[str], why: str) -> None:
    if lost:
        run.counts.pages_lost += len(lost)
        what = "; ".join(run.oracle.words_for(name) for name in sorted(lost))
        given_up = "any number of" if math.isinf(run.given_up) else f"{run.given_up:.0f}"
        run.counts.remark(f"{why}, with {given_up} pages given up for want of room: {what}")


def _is_elsewhere(tiers: dict[str, dict[str, int]]) -> bool:
    """Whether the remote tier alone may have some pages."""
    return tiers.get("remote", {}).get("demoted", 0) > 0


def _cached_tokens(run: Run, session: RemoteSession, page: KnownPage) -> int:
    tokens = page.text.tokens(0, page.end + 1)
    handle, cached = session.open_prompt(tokens, 0, tenant=page.tenant)
    life = Life(-1, -1, handle, page.tenant, page.text, page.end, page.end, cached)
    compare(run, life)
    session.close_sequence(handle)
    return cached
