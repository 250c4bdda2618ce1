"""Comparisons of what the server has with what it must have."""

import base64
import time

from hisparse_sidecar.cli.stress.lives import Life
from hisparse_sidecar.cli.stress.oracle import KnownPage
from hisparse_sidecar.cli.stress.run import Run
from hisparse_sidecar.cli.stress.world import has_room
from hisparse_sidecar.client import RemoteSession
from hisparse_sidecar.errors import DeadlinePassed, HisparseError, TierDown, TierFull
from hisparse_sidecar.wire.errors import ServerUnavailable

_FLUSH_SECONDS = 5.0
_MOST_PROMISES = 40
_TRIES = 3
_FULL = 0.8  # share of the file tier's capacity from which on it may give pages out


def compare(run: Run, life: Life) -> None:
    """Every byte of the sequence's rows, against the oracle's."""
    found, needed = run.server.ask("digests", sequence=life.handle), run.oracle.digests(life)
    if len(found) != len(needed):
        run.counts.remark(f"sequence {life.number} has {len(found)} pages, needs {len(needed)}")
        return
    for number, links in enumerate(life.page_links()):
        run.counts.checked_bytes += len(links) * run.bytes_per_token
        if found[number] != needed[number]:
            _count_wrong(run, life, number, run.oracle.bytes_of(links))


def _count_wrong(run: Run, life: Life, number: int, needed: bytes) -> None:
    found = base64.b64decode(run.server.ask("bytes", sequence=life.handle, page=number))
    wrong = sum(one != other for one, other in zip(found, needed, strict=True))
    run.counts.wrong_bytes += wrong
    what = f"sequence {life.number} of {life.length} tokens, tenant {life.tenant!r}"
    run.counts.remark(f"{what}: page {number} has {wrong} wrong bytes of {len(needed)}")


def audit(run: Run) -> None:
    """Every active sequence, the invariants of the sidecar, and how many sequences are open."""
    for life in run.lives.values():
        if not life.rests:
            compare(run, life)
    try:
        run.server.ask("check")
    except ServerUnavailable:
        raise
    except HisparseError as error:
        run.counts.remark(f"an invariant is broken: {error}")
    run.bystanders.look()
    state = run.server.ask("state")
    run.note_faults(state["faults"])
    found, most = state["core"]["sequences"], len(run.lives) + run.bystanders.num_running
    if not len(run.lives) <= found <= most:
        run.counts.remark(f"{found} sequences are open, clients have {len(run.lives)} to {most}")


def checkpoint(run: Run, *, drains: bool = False) -> str:
    """Flushes, and notes which pages the file tier has promised by it.

    Returns:
        "done", "refused" where a tier that was made to fail has said so, or "unsure".
    """
    before = run.files.live_pages()
    state = run.server.ask("state")
    run.note_faults(state["faults"])
    _note_evictions(run, state)
    check_files(run, before)
    try:
        with run.timed("flush"):
            if drains:
                run.server.ask("drain", seconds=_FLUSH_SECONDS)
                before = run.files.live_pages()
            run.server.ask("flush", seconds=_FLUSH_SECONDS)
    except (TierDown, DeadlinePassed):
        return "refused"
    except TierFull:
        if not run.evicts:
            raise
        return "refused"
    if time.monotonic() < run.late_until:
        return "unsure"  # a put that was given up may be on the disk, and will be dropped
    run.oracle.acknowledge(before & run.files.live_pages())
    if drains:  # which has taken out what was given up
        run.may_evict = run.evicts
        _note_evictions(run, run.server.ask("state"))
        # a resting sequence may have the only copy left, under a name of its own
        run.may_evict |= run.pages_left > 0 and not has_room(run.settings)
    return "done"


def _note_evictions(run: Run, state: dict[str, dict[str, dict[str, float]]]) -> None:
    files = state["tiers"].get("file")
    if files is None:
        return
    is_full = files["used_bytes"] > _FULL * files["capacity_bytes"]
    run.may_evict = run.may_evict or is_full or files["left"] > run.pages_left
    run.pages_left = files["left"]


def check_files(run: Run, live: set[str]) -> None:
    """Pages that were promised must be on the disk: nobody has taken them out for want of room."""
    gone = run.oracle.acknowledged - run.oracle.damaged - live
    if gone and not run.may_evict:
        gone -= run.files.live_pages()  # one may have been moved while we looked
    if run.may_evict:
        run.oracle.acknowledged -= gone
    elif gone:
        run.counts.pages_lost += len(gone)
        what = "; ".join(run.oracle.words_for(name) for name in sorted(gone))
        run.counts.remark(f"acknowledged by a flush, and not on the disk: {what}")


def check_saved(run: Run, names: set[str]) -> None:
    """A drain has ended well, and nobody had these pages: all of them must be on the disk."""
    tiers = run.server.ask("state")["tiers"]
    is_elsewhere = tiers.get("remote", {}).get("demoted", 0) > 0  # kept by the remote tier alone
    if "file" not in tiers or is_elsewhere or "corrupt" in run.settings.faults:
        return
    missing = names - run.files.live_pages()
    if missing and not run.may_evict:
        run.counts.pages_lost += len(missing)
        what = "; ".join(run.oracle.words_for(name) for name in sorted(missing))
        run.counts.remark(f"idle when a drain ended well, and not on the disk: {what}")


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


def _cached_tokens(run: Run, session: RemoteSession, page: KnownPage) -> int:
    tokens = page.text.tokens(0, page.end + 1)
    handle, cached = session.open_prompt(tokens, 0, tenant=page.tenant)
    life = Life(-1, -1, handle, page.tenant, page.text, page.end, page.end, cached)
    compare(run, life)
    session.close_sequence(handle)
    return cached
