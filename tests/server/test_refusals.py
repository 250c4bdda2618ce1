"""A tenant that goes on asking for more than its share waits for refusals; nobody else does."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hisparse_sidecar._proto.hisparse.v1 import sequence_pb2, sequence_pb2_grpc
from hisparse_sidecar.client import RemoteSession, SidecarClient
from hisparse_sidecar.errors import HostPoolFull, TierFull
from hisparse_sidecar.server import SidecarServer
from hisparse_sidecar.server.options import Limits
from hisparse_sidecar.wire.retry_info import decode_retry_info
from tests.pipeline.world import small_config
from tests.server.serving import END_SECONDS, channel_to, run_step, status_of, wait_until

PAGE_TOKENS, AT_ONCE = 64, 16
QUOTAS = {"flood": 4, "calm": 8}
TEXT = list(range(2 * PAGE_TOKENS + 1))  # three pages
MESSAGE = sequence_pb2.OpenSequenceRequest(token_ids=TEXT, tenant="flood")
REFUSAL = "share of tenant 1 full: need 3 pages, 1 free of 4"


class Site:
    """A server on which the share of `flood` is full, and a crowd of its calls can wait."""

    def __init__(self, server: SidecarServer, client: SidecarClient) -> None:
        self.server, self.client = server, client
        self.sequence = client.open_prompt(TEXT, 0, tenant="flood").sequence
        self.refusals = server._runtime._admissions.refusals

    def num_opener_threads(self) -> int:
        return len(self.server._runtime._openers._executor._threads)

    def refused(self) -> str:
        with pytest.raises(TierFull) as refusal:
            self.client.open_prompt(TEXT, 0, tenant="flood")
        return str(refusal.value)

    def refuse_until_they_wait(self) -> None:
        for _ in range(AT_ONCE):
            assert self.refused() == REFUSAL
        assert self.refusals.num_waiting == 0

    def pages_of(self, tenant: str) -> int:
        return self.client.server_stats().tenants[tenant][0]

    def in_loop(self, call: Coroutine[Any, Any, None]) -> "Future[None]":
        loop = self.server._loop
        assert loop is not None
        return asyncio.run_coroutine_threadsafe(call, loop)

    def end_refusals(self) -> None:
        if (loop := self.server._loop) is not None:  # else a drain has ended them
            loop.call_soon_threadsafe(self.refusals.end)


@contextmanager
def serving(folder: Path, max_call_seconds: float) -> Iterator[Site]:
    """Refusals wait for a thousand seconds there, beyond those that are answered at once."""
    limits = Limits(
        refusals_per_second=1e-3, max_refusal_seconds=1000.0, max_call_seconds=max_call_seconds
    )
    with (
        SidecarServer(small_config(), folder / "s", limits=limits, quota_pages=QUOTAS) as server,
        SidecarClient.connect(server.socket_path, 1000.0) as client,
    ):
        yield Site(server, client)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving(tmp_path, 2000.0) as site:
        yield site


@pytest.fixture
def crowd(site: Site) -> Iterator[list["Future[str]"]]:
    """Three calls of `flood` whose answers wait."""
    site.refuse_until_they_wait()
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(site.refused) for _ in range(3)]
        wait_until(lambda: site.refusals.num_waiting == 3)
        yield waiting
        site.end_refusals()


def test_others_are_served_while_refusals_wait(site: Site, crowd: list["Future[str]"]) -> None:
    with RemoteSession(site.server.socket_path) as session:
        opened = session.client.open_prompt(TEXT, 0, tenant="calm")
        run_step(session, [(opened.sequence, 2)], 1)
        session.close_sequence(opened.sequence)
    with channel_to(site.server.socket_path) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = check(health_pb2.HealthCheckRequest(), timeout=END_SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert (site.pages_of("flood"), site.pages_of("calm")) == (3, 0)
    assert not any(call.done() for call in crowd)


def test_the_tenant_may_open_what_fits_while_its_refusals_wait(
    site: Site, crowd: list["Future[str]"]
) -> None:
    opened = site.client.open_prompt(TEXT[:1], 0, tenant="flood")
    assert site.pages_of("flood") == 4
    site.client.close_sequence(opened.sequence)
    assert not any(call.done() for call in crowd)


def test_a_drain_answers_refusals_that_wait(site: Site, crowd: list["Future[str]"]) -> None:
    site.server.stop(END_SECONDS)
    assert [call.result(END_SECONDS) for call in crowd] == [REFUSAL] * 3


def test_a_refusal_that_nobody_waits_for_any_more_is_dropped(
    site: Site, crowd: list["Future[str]"]
) -> None:
    with channel_to(site.server.socket_path) as channel:
        call = sequence_pb2_grpc.SequenceServiceStub(channel).OpenSequence.future(MESSAGE)
        wait_until(lambda: site.refusals.num_waiting == 4)
        call.cancel()
        wait_until(lambda: site.refusals.num_waiting == 3)
    assert not any(call.done() for call in crowd)


def test_a_refusal_is_told_before_its_deadline(site: Site) -> None:
    site.refuse_until_they_wait()
    with channel_to(site.server.socket_path) as channel:
        stub = sequence_pb2_grpc.SequenceServiceStub(channel)
        code, text, metadata = status_of(lambda: stub.OpenSequence(MESSAGE, timeout=4.0))
    assert (code, text) == (grpc.StatusCode.RESOURCE_EXHAUSTED, REFUSAL)
    assert metadata["hisparse-error"] == "TierFull"
    assert decode_retry_info(metadata.items()) == 0.25


def test_a_refusal_is_told_before_the_server_ends_its_call(tmp_path: Path) -> None:
    with serving(tmp_path, 2.0) as site:
        site.refuse_until_they_wait()
        assert site.refused() == REFUSAL


def test_a_message_that_waits_counts_as_long_as_it_lies_in_memory(
    site: Site, crowd: list["Future[str]"]
) -> None:
    assert site.refusals.num_bytes >= len(crowd) * 8 * len(TEXT)


def test_forks_that_a_full_share_refuses_wait_too(site: Site) -> None:
    def fork() -> None:
        with pytest.raises(TierFull, match="need 5 pages, 1 free of 4"):
            site.client.fork_sequence(site.sequence, 0, 5 * PAGE_TOKENS)

    for _ in range(AT_ONCE):
        fork()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(fork)
        wait_until(lambda: site.refusals.num_waiting == 1)
        site.end_refusals()
        waiting.result(END_SECONDS)


def test_a_refusal_takes_no_other_thread(site: Site) -> None:
    """It is answered while the one that all calls share is held."""
    held, release = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        held.set()
        assert release.wait(END_SECONDS)

    holding = site.in_loop(site.server._runtime.call(hold))
    try:
        assert held.wait(END_SECONDS)
        assert site.refused() == REFUSAL
    finally:
        release.set()
    holding.result(END_SECONDS)
    assert site.num_opener_threads() == 0


def test_a_long_prompt_is_looked_for_in_a_thread(site: Site) -> None:
    with pytest.raises(TierFull):
        site.client.open_prompt(list(range(4096)), 0, tenant="flood")
    assert site.num_opener_threads() == 0
    with pytest.raises(TierFull):
        site.client.open_prompt(list(range(4097)), 0, tenant="flood")
    assert site.num_opener_threads() == 1


def test_refusals_for_want_of_room_in_the_pool_are_answered_at_once(site: Site) -> None:
    for _ in range(2 * AT_ONCE):
        with pytest.raises(HostPoolFull):
            site.client.open_sequence(65 * PAGE_TOKENS, 0)
    assert site.refusals.num_parties == 0
