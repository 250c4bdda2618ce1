"""Sequences come back from rest, and fork, beside the calls of others: a disk stops one client."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from hisparse_sidecar._core import FileTier
from hisparse_sidecar._proto.hisparse.v1 import sequence_pb2, sequence_pb2_grpc
from hisparse_sidecar.client import RemoteSession
from hisparse_sidecar.errors import HostPoolFull, StaleHandle, WrongState
from hisparse_sidecar.server import SidecarServer
from hisparse_sidecar.wire.errors import NotOwner
from hisparse_sidecar.wire.names import CLIENT_KEY
from tests.server.serving import (
    END_SECONDS,
    assert_equal,
    channel_to,
    run_step,
    wait_until,
)
from tests.server.test_tiers import PAGE_TOKENS, config_with_files, prefill, server_stats

HOST_PAGES = 12
SLOW_SECONDS = 2.0
LENGTH, PINS = 4 * PAGE_TOKENS + 1, 5  # of a sequence that rests, and of the pages of one lease


class Site:
    """A server with few host pages whose files can be made slow, and two of its clients."""

    def __init__(self, server: SidecarServer, session: RemoteSession, other: RemoteSession) -> None:
        self.session, self.other, self.socket_path = session, other, server.socket_path
        self._sidecar = server._runtime._shared.sidecar
        files = self._sidecar._tiers.lower.files
        assert files is not None
        self.files: FileTier = files

    def rest(self, number: int) -> int:
        """A sequence of four pages and a token whose pages are all in files, and nobody's else."""
        return self.let_rest(prefill(self.session, number, max_new_tokens=8)[0])

    def let_rest(self, sequence: int) -> int:
        self.session.preempt(sequence)
        self.session.close_sequence(self.session.open(HOST_PAGES * PAGE_TOKENS, 0))
        assert self.session.stats().core.host_pages_free == HOST_PAGES
        return sequence

    def slow(self, failpoint: str) -> None:
        self.files.arm(failpoint, sleep_seconds=SLOW_SECONDS, one_in=1, seed=1)

    def num_pins(self) -> int:
        return self._sidecar.prefix_stats().pins

    def hurry(self) -> None:
        self.files.disarm()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    config = config_with_files(
        tmp_path, host_pages=HOST_PAGES, max_sequences=8, load_seconds=60.0, call_seconds=60.0
    )
    with (
        SidecarServer(config, tmp_path / "s") as server,
        RemoteSession(server.socket_path) as session,
        RemoteSession(server.socket_path) as other,
    ):
        yield Site(server, session, other)


@contextmanager
def beside(call: Callable[[], Any]) -> Iterator[list[Any]]:
    """Runs `call` in a thread, beside the block; its result or error, once the block is left."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:  # the test looks at it
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield found
    thread.join(END_SECONDS)
    assert not thread.is_alive()


def work(session: RemoteSession, seed: int) -> None:
    """What a client does that needs no disk."""
    sequence = session.open(8, 0)
    run_step(session, [(sequence, 8)], seed)
    session.close_sequence(session.fork(sequence, 8, 0))
    session.close_sequence(sequence)


def test_who_needs_no_disk_does_not_wait_while_another_comes_back_from_rest(site: Site) -> None:
    sequence, _ = prefill(site.session, 1, max_new_tokens=8)
    twin = site.session.fork(sequence, LENGTH, 8)
    wanted = run_step(site.session, [(twin, 3)], 7)
    site.session.close_sequence(twin)
    site.let_rest(sequence)
    site.slow("before_read")
    with beside(lambda: site.session.resume(sequence)) as found:
        wait_until(lambda: site.files.num_injected(None) > 0)
        work(site.other, 1)
        assert found == []
        with pytest.raises(WrongState):  # it still rests
            site.session.begin_step([(sequence, 1)], "decode")
        site.hurry()
    assert found == [LENGTH]
    assert site.num_pins() == 0
    assert_equal(run_step(site.session, [(sequence, 3)], 7), wanted)


def test_who_needs_no_disk_does_not_wait_while_another_makes_room_to_fork(site: Site) -> None:
    source, _ = prefill(site.session, 1, max_new_tokens=8)
    site.session.close_sequence(prefill(site.session, 2)[0])  # four idle pages
    site.slow("before_write")
    with beside(lambda: site.session.fork(source, 65, 3 * PAGE_TOKENS)) as found:
        wait_until(lambda: site.files.num_injected(None) > 0)
        work(site.other, 2)
        assert found == []
        site.hurry()
    (child,) = found
    site.session.truncate(source, 65)
    found_rows, wanted = (run_step(site.session, [(each, 2)], 9) for each in (child, source))
    assert_equal(found_rows, wanted)
    assert server_stats(site.session).tiers[0].demoted > 0


def test_a_sequence_that_is_closed_while_it_comes_back_is_gone_and_leaves_nothing(
    site: Site,
) -> None:
    sequence = site.rest(3)
    site.slow("before_read")
    with beside(lambda: site.session.resume(sequence)) as found:
        wait_until(lambda: site.files.num_injected(None) > 0)
        site.session.close_sequence(sequence)
        assert found == []
        site.hurry()
    (error,) = found
    assert isinstance(error, StaleHandle)
    assert site.num_pins() == 0
    site.session.close_sequence(site.session.open(HOST_PAGES * PAGE_TOKENS, 0))


def test_of_two_calls_that_bring_a_sequence_back_one_does(site: Site) -> None:
    sequence = site.rest(4)
    site.slow("before_read")
    with beside(lambda: site.session.resume(sequence)) as first:
        wait_until(lambda: site.files.num_injected(None) > 0)
        with beside(lambda: site.session.resume(sequence)) as second:
            wait_until(lambda: site.num_pins() > PINS)
            site.hurry()
    results = sorted((*first, *second), key=lambda each: isinstance(each, Exception))
    assert results[0] == LENGTH
    assert isinstance(results[1], WrongState)
    assert site.num_pins() == 0


def test_nothing_is_loaded_for_who_does_not_own_the_sequence(site: Site) -> None:
    sequence = site.rest(5)
    with pytest.raises(NotOwner):
        site.other.resume(sequence)
    assert server_stats(site.session).tiers[0].promoted == 0
    assert site.session.resume(sequence) == LENGTH


@pytest.mark.parametrize("ends", ["cancelled", "gone"])
def test_a_call_that_nobody_waits_for_leaves_the_sequence_at_rest_or_gone(
    site: Site, ends: str
) -> None:
    sequence = site.rest(6)
    site.slow("before_read")
    with channel_to(site.socket_path) as channel:
        stub = sequence_pb2_grpc.SequenceServiceStub(channel)
        request = sequence_pb2.ResumeSequenceRequest(sequence_id=sequence)
        token: Any = ((CLIENT_KEY, site.session.client._metadata[0][1]),)
        call = stub.ResumeSequence.future(request, metadata=token)
        wait_until(lambda: site.files.num_injected(None) > 0)
        if ends == "cancelled":
            call.cancel()
        else:
            site.session.close()
            with pytest.raises(grpc.RpcError):
                call.result(END_SECONDS)
    site.hurry()
    wait_until(lambda: site.num_pins() == 0)
    if ends == "cancelled":
        assert site.session.resume(sequence) == LENGTH
    else:
        assert site.other.stats().core.sequences == 0


def test_of_two_that_have_room_one_after_the_other_one_comes_back(tmp_path: Path) -> None:
    """Each loads half of its pages before it finds that the other has the rest of the room."""
    config = config_with_files(
        tmp_path, host_pages=40, max_sequences=4, load_seconds=60.0, call_seconds=60.0
    )
    config = replace(config, tiers=replace(config.tiers, io_threads=1))  # 16 pages at a time
    with (
        SidecarServer(config, tmp_path / "s") as server,
        RemoteSession(server.socket_path) as session,
        RemoteSession(server.socket_path) as other,
    ):
        site, sequences = Site(server, session, other), []
        for seed in range(2):
            sequence = session.open(30 * PAGE_TOKENS, 0)
            run_step(session, [(sequence, 30 * PAGE_TOKENS)], seed)
            sequences.append(sequence)
            session.preempt(sequence)
            session.close_sequence(session.open(40 * PAGE_TOKENS, 0))
        site.files.arm("before_read", sleep_seconds=0.01, one_in=1, seed=1)
        with (
            beside(lambda: session.resume(sequences[0])) as one,
            beside(lambda: session.resume(sequences[1])) as two,
        ):
            pass
        refused, length = sorted((*one, *two), key=lambda each: isinstance(each, int))
        assert isinstance(refused, HostPoolFull)
        assert length == 30 * PAGE_TOKENS
        assert site.num_pins() == 0


def test_without_room_it_rests_as_before_and_says_what_was_needed(site: Site) -> None:
    sequence = site.rest(7)
    whole = site.other.open(8 * PAGE_TOKENS, 0)  # four pages are left, five are needed
    with pytest.raises(HostPoolFull, match="need"):
        site.session.resume(sequence)
    assert site.num_pins() == 0
    site.other.close_sequence(whole)
    assert site.session.resume(sequence) == LENGTH
