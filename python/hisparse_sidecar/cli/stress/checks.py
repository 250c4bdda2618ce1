"""Comparisons of what the server has with what it must have."""

import base64

from hisparse_sidecar.cli.stress.lives import Life
from hisparse_sidecar.cli.stress.run import Run
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.wire.errors import ServerUnavailable


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
    state = run.note_state()
    found, most = state["core"]["sequences"], len(run.lives) + run.bystanders.num_running
    if not len(run.lives) <= found <= most:
        run.counts.remark(f"{found} sequences are open, clients have {len(run.lives)} to {most}")
