"""Which pages `hisparse stress` counts as promised, as given up for want of room, and as lost."""

import os
import struct
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hisparse_sidecar.cli.stress import promises
from hisparse_sidecar.cli.stress.counts import Counts
from hisparse_sidecar.cli.stress.dealer import Operation
from hisparse_sidecar.cli.stress.fault_operations import corrupt
from hisparse_sidecar.cli.stress.lives import Life
from hisparse_sidecar.cli.stress.oracle import Oracle
from hisparse_sidecar.cli.stress.page_names import PageNames, keyed_hash
from hisparse_sidecar.cli.stress.rows import digest
from hisparse_sidecar.cli.stress.segments import SegmentReader, StoredPage
from hisparse_sidecar.cli.stress.settings import StressSettings
from hisparse_sidecar.cli.stress.texts import text
from hisparse_sidecar.cli.stress.world import server_config

pytestmark = pytest.mark.cpu_only

PAGE_BYTES = 5000
RECORD_BYTES = 8192
NAME, PRIVATE = b"n" * 32, b"p" * 32
LIVE, DEAD = b"pageLIVE", b"pagedead"


@pytest.mark.parametrize(
    ("num_bytes", "needed"),
    [
        (0, "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26"),
        (1024, "75c46f6f3d9eb4f55ecaaee480db732e6c2105546f1e675003687c31719c7ba4"),
    ],
)
def test_names_are_keyed_blake3(num_bytes: int, needed: str) -> None:
    counted = bytes(number % 251 for number in range(num_bytes))  # BLAKE3's own test vectors
    assert keyed_hash(b"whats the Elvish word for friend", counted).hex() == needed


# -- what lies in the files ---------------------------------------------------------------------


def record(block: int, sequence: int, payload: bytes, mark: bytes = LIVE) -> bytearray:
    fields = struct.pack("<II32s32s32s", 1, 64, b"d" * 32, NAME, b"r" * 32)
    fields += struct.pack("<QQIIII", sequence, 7, 1, block, PAGE_BYTES, zlib.crc32(payload))
    header = fields + bytes(192 - 16 - 4 - len(fields))
    checked = header + zlib.crc32(header).to_bytes(4, "little")
    return bytearray((b"hispPAGE" + mark + checked + payload).ljust(RECORD_BYTES, b"\0"))


def reader_of(folder: Path, *records: bytes) -> SegmentReader:
    head = bytes(56)
    head += zlib.crc32(head).to_bytes(4, "little")
    (folder / "segment-00000001").write_bytes(head.ljust(4096, b"\0") + b"".join(records))
    return SegmentReader(folder, PAGE_BYTES)


def test_a_copy_that_was_cut_short_does_not_hide_the_page(tmp_path: Path) -> None:
    payload = b"x" * PAGE_BYTES
    torn = record(3, 9, payload)
    torn[RECORD_BYTES // 2 :] = bytes(RECORD_BYTES // 2)
    reader = reader_of(tmp_path, record(1, 5, payload), torn)
    assert reader.live_pages() == {NAME: digest(payload)}


def test_a_copy_that_was_given_up_does_not_hide_the_page(tmp_path: Path) -> None:
    payload = b"x" * PAGE_BYTES
    reader = reader_of(tmp_path, record(1, 5, payload), record(3, 9, payload, DEAD))
    assert reader.live_pages() == {NAME: digest(payload)}


def test_neither_a_copy_nor_an_earlier_put_stands_in_for_the_record_that_was_damaged(
    tmp_path: Path,
) -> None:
    first, last = b"x" * PAGE_BYTES, b"y" * PAGE_BYTES
    damaged = record(3, 9, last)
    damaged[4000] ^= 1
    # the tier that runs may have taken the damaged one of two for the page
    for folder, copies in (("copied", [record(5, 9, last)]), ("alone", [])):
        (tmp_path / folder).mkdir()
        reader = reader_of(tmp_path / folder, record(1, 5, first), record(3, 9, last), *copies)
        (path,) = reader.paths()
        hit = [page for page in reader.pages(path) if page.start == 3 * 4096]
        reader_of(tmp_path / folder, record(1, 5, first), damaged, *copies)
        reader.damage(path, hit)
        assert reader.live_pages() == {}
        again = record(7, 10, first)
        reader_of(tmp_path / folder, record(1, 5, first), damaged, *copies, again)
        reader.damage(path, [])  # forgets what it has read of the file
        assert reader.live_pages() == {NAME: digest(first)}


def test_the_last_whole_record_of_a_page_counts(tmp_path: Path) -> None:
    first, last = b"x" * PAGE_BYTES, b"y" * PAGE_BYTES
    reader = reader_of(tmp_path, record(1, 9, last), record(3, 5, first))
    assert reader.live_pages() == {NAME: digest(last)}


# -- what was promised, and what may go ---------------------------------------------------------


class Server:
    """Answers as a file tier that thinks it has some pages, and has given some up."""

    is_killed = False

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.host: list[str] = []

    def ask(self, do: str, **arguments: Any) -> Any:
        if do == "holds":
            return [name in self.held for name in arguments["names"]]
        answers = {"host_pages": self.host, "state": {"tiers": {"file": {}}}, "flush": None}
        return answers[do]


@pytest.fixture
def run(tmp_path: Path) -> SimpleNamespace:
    """A run that knows one sequence of three full pages, all of them in the files and promised."""
    config = server_config(StressSettings(1.0, 0, 1, (), ("file",)), tmp_path)
    oracle = Oracle(config, PageNames(config, bytes(32)))
    life = Life(1, 0, 0, "north", text(0), 200, 200, 200)
    oracle.learn(life)
    names = oracle.identities(oracle.shared(life))
    stored = {name: digest for digest, name in names.items()}
    oracle.acknowledge(oracle.findable(stored))
    return SimpleNamespace(
        oracle=oracle,
        server=Server(),
        counts=Counts(),
        files=SimpleNamespace(live_pages=lambda: stored),
        lives={1: life},
        stored=stored,
        given_up=0,
        may_lose=False,
        note_state=lambda: None,
        timed=lambda _name: nullcontext(),
        late_until=0.0,
    )


def remove_first(run: SimpleNamespace, count: int) -> list[bytes]:
    removed = list(run.stored)[:count]
    for name in removed:
        del run.stored[name]
    return removed


@pytest.mark.parametrize(("is_gone", "outcome"), [(False, "done"), (True, "skipped")])
def test_a_file_that_was_given_up_since_is_not_damaged(
    run: SimpleNamespace, tmp_path: Path, is_gone: bool, outcome: str
) -> None:
    reader = reader_of(tmp_path, record(1, 1, b"a" * PAGE_BYTES))
    found = reader.paths(more_than=8192)
    run.files = SimpleNamespace(
        paths=lambda more_than: found, pages=reader.pages, damage=reader.damage
    )
    if is_gone:
        found[0].unlink()
    assert corrupt(run, Operation(do="corrupt", file=0.0, place=0.5, how="flip")) == outcome
    assert run.counts.faults["corrupt"] == (not is_gone)
    assert run.may_lose is not is_gone


@pytest.mark.parametrize(
    "change", [Path.unlink, lambda path: os.truncate(path, 4096), lambda path: os.truncate(path, 0)]
)
@pytest.mark.parametrize("how", ["flip", "zero", "cut"])
def test_a_file_that_is_given_up_or_cut_while_it_is_read_is_not_damaged(
    run: SimpleNamespace, tmp_path: Path, how: str, change: Callable[[Path], None]
) -> None:
    reader = reader_of(tmp_path, record(1, 1, b"a" * PAGE_BYTES))

    def pages(path: Path) -> list[StoredPage]:
        change(path)
        return reader.pages(path)

    run.files = SimpleNamespace(paths=reader.paths, pages=pages, damage=reader.damage)
    assert corrupt(run, Operation(do="corrupt", file=0.0, place=0.5, how=how)) == "skipped"
    assert not run.counts.faults["corrupt"]
    assert not run.may_lose


def test_bytes_under_a_private_name_are_no_promise(run: SimpleNamespace) -> None:
    (name,) = remove_first(run, 1)
    first = run.oracle.shared(run.lives[1])[0]
    run.stored[PRIVATE] = first
    assert first not in run.oracle.findable(run.stored)
    assert name not in run.stored


def test_a_page_that_could_not_be_marked_dead_is_no_promise(run: SimpleNamespace) -> None:
    kept, *_ = run.stored  # the others were given up while nothing could be written
    run.server.held.add(kept.hex())
    assert promises.checkpoint(run) == "done"
    assert run.oracle.acknowledged == {run.stored[kept]}


def test_a_page_that_was_given_up_for_want_of_room_is_not_lost(run: SimpleNamespace) -> None:
    remove_first(run, 2)
    run.given_up = 2
    promises.check_files(run)
    assert run.counts.holds
    assert run.given_up == 0
    assert len(run.oracle.acknowledged) == 1


def test_more_pages_gone_than_given_up_are_lost(run: SimpleNamespace) -> None:
    remove_first(run, 2)
    run.given_up = 1
    promises.check_files(run)
    assert run.counts.pages_lost == 2


def test_a_page_that_the_tier_claims_to_have_is_lost_if_it_is_gone(run: SimpleNamespace) -> None:
    (name,) = remove_first(run, 1)
    run.given_up = 10
    run.server.held.add(name.hex())
    promises.check_files(run)
    assert run.counts.pages_lost == 1
    assert "10 pages given up" in run.counts.remarks[0]


def test_no_page_of_a_sequence_that_rests_may_be_nowhere(run: SimpleNamespace) -> None:
    run.lives[1].rests = True
    first, second, _ = run.oracle.full_pages(run.lives[1])
    remove_first(run, 2)
    run.server.host = [first]
    run.stored[PRIVATE] = second
    promises.check_rests(run)
    assert run.counts.holds
    del run.stored[PRIVATE]
    run.given_up = 10
    promises.check_rests(run)
    assert run.counts.pages_lost == 1
    assert "sequence 1 rests" in run.counts.remarks[0]
