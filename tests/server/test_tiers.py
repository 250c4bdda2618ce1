"""A server with files below its host pool: restarts, drains, and what a failing tier costs."""

import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hisparse_sidecar import HisparseError, SidecarConfig
from hisparse_sidecar.client import RemoteSession
from hisparse_sidecar.config import TiersConfig
from hisparse_sidecar.errors import HostPoolFull
from hisparse_sidecar.server import SidecarServer
from hisparse_sidecar.wire.errors import Draining, ServerUnavailable
from hisparse_sidecar.wire.stats import ServerStats
from tests.pipeline.world import small_config
from tests.server.serving import (
    END_SECONDS,
    ServerProgram,
    channel_to,
    run_layers,
    run_step,
    wait_until,
)
from tests.server.test_slow_readers import SlowReader

PAGE_TOKENS = 64
PROMPT_PAGES = 4
SERVING = health_pb2.HealthCheckResponse.SERVING


def config_with_files(
    folder: Path,
    free_share: float = 0.0,
    load_seconds: float = 5.0,
    call_seconds: float = 1.0,
    **changes: object,
) -> SidecarConfig:
    tiers = TiersConfig(
        file_directory=str(folder / "pages"),
        file_bytes=1 << 26,
        segment_bytes=1 << 22,
        model_name="small",
        free_share=free_share,
        probe_seconds=0.0,
        load_seconds=load_seconds,
        call_seconds=call_seconds,
    )
    return small_config(tiers=tiers, **changes)


@contextmanager
def program(
    tmp_path: Path, name: str, free_share: float = 0.0, **changes: object
) -> Iterator[ServerProgram]:
    folder = tmp_path / name
    folder.mkdir()
    with ServerProgram(folder, config_with_files(tmp_path, free_share, **changes)) as server:
        yield server


def prompt(number: int) -> list[int]:
    """A text of four pages and one token: all four may be shared."""
    return [number * 1000 + at for at in range(PROMPT_PAGES * PAGE_TOKENS + 1)]


def prefill(session: RemoteSession, number: int, max_new_tokens: int = 0) -> tuple[int, int]:
    token_ids = prompt(number)
    sequence, cached = session.open_prompt(token_ids, max_new_tokens)
    rows = [(sequence, len(token_ids) - cached)]
    session.begin_step(rows, "prefill", token_ids=token_ids[cached:])
    run_layers(session, rows, number)
    session.end_step()
    return sequence, cached


def server_stats(session: RemoteSession) -> ServerStats:
    return session.client.server_stats()


def test_sigterm_saves_the_prompts_of_open_and_closed_sequences(tmp_path: Path) -> None:
    with program(tmp_path, "first") as server, RemoteSession(server.socket_path) as session:
        session.close_sequence(prefill(session, 1)[0])
        prefill(session, 2)  # stays open
        session.preempt(prefill(session, 3)[0])
        assert server.end(signal.SIGTERM) == 0
        assert "drained: " in server.stderr
    with program(tmp_path, "again") as server, RemoteSession(server.socket_path) as session:
        found = [session.open_prompt(prompt(number), 0).cached_tokens for number in (1, 2, 3, 4)]
        assert found == [PROMPT_PAGES * PAGE_TOKENS] * 3 + [0]
        (tier,) = server_stats(session).tiers
        assert (tier.name, tier.condition) == ("file", "serving")
        assert tier.pages >= tier.promoted == 3 * PROMPT_PAGES
        assert 0 < tier.used_bytes <= tier.capacity_bytes


def call_until_refused(session: RemoteSession, failed: list[Exception]) -> None:
    try:
        while True:
            sequence = session.open(1, 0)
            session.truncate(sequence, 0)
            session.close_sequence(sequence)
    except (Draining, ServerUnavailable):
        return
    except HisparseError as error:
        failed.append(error)


def test_a_drain_under_load_fails_no_call_and_saves_what_was_there(tmp_path: Path) -> None:
    failed: list[Exception] = []
    with program(tmp_path, "first", max_sequences=12, host_pages=32) as server:
        sessions = [RemoteSession(server.socket_path) for _ in range(5)]
        prefill(sessions[0], 1, max_new_tokens=8)
        threads = [
            threading.Thread(target=call_until_refused, args=(session, failed))
            for session in sessions[1:]
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        with channel_to(server.socket_path) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            server.process.send_signal(signal.SIGTERM)
            states = set()
            with suppress(Exception):
                while True:
                    states.add(check(health_pb2.HealthCheckRequest()).status)
        assert server.process.wait(END_SECONDS) == 0
        for thread in threads:
            thread.join(END_SECONDS)
        for session in sessions:
            session.close()
    assert failed == []
    assert states <= {SERVING, health_pb2.HealthCheckResponse.NOT_SERVING}
    with program(tmp_path, "again") as server, RemoteSession(server.socket_path) as session:
        assert session.open_prompt(prompt(1), 0).cached_tokens == PROMPT_PAGES * PAGE_TOKENS


def test_a_client_that_reads_nothing_does_not_hold_up_the_drain(tmp_path: Path) -> None:
    with program(tmp_path, "first") as server, RemoteSession(server.socket_path) as session:
        session.close_sequence(prefill(session, 1)[0])
        with SlowReader(server.socket_path) as slow:
            wait_until(slow.is_held_up)
            began = time.monotonic()
            assert server.end(signal.SIGTERM) == 0
            assert time.monotonic() - began < 10.0  # of the 30 that it might have taken
    with program(tmp_path, "again") as server, RemoteSession(server.socket_path) as session:
        assert session.open_prompt(prompt(1), 0).cached_tokens == PROMPT_PAGES * PAGE_TOKENS


def test_more_prompts_than_the_host_pool_has_room_for_are_kept_below(tmp_path: Path) -> None:
    with (
        program(tmp_path, "run", free_share=0.5, host_pages=12) as server,
        RemoteSession(server.socket_path) as session,
    ):
        for _ in range(2):
            for number in range(8):  # 32 pages to share
                session.close_sequence(prefill(session, number)[0])
                wait_until(lambda: session.stats().core.host_pages_free >= 6)
        (tier,) = server_stats(session).tiers
        assert tier.demoted >= 28
        assert tier.promoted >= 24
        assert (tier.corrupt, tier.failed, tier.missed) == (0, 0, 0)
        found = [session.open_prompt(prompt(number), 0).cached_tokens for number in (0, 7)]
        assert found == [PROMPT_PAGES * PAGE_TOKENS] * 2


def test_who_finds_pages_in_the_host_pool_does_not_wait_for_anothers_disk(tmp_path: Path) -> None:
    config = config_with_files(tmp_path, 0.5, host_pages=12, load_seconds=60.0, call_seconds=60.0)
    with (
        SidecarServer(config, tmp_path / "s") as server,
        RemoteSession(server.socket_path) as session,
        RemoteSession(server.socket_path) as other,
    ):
        for number in range(4):
            session.close_sequence(prefill(session, number)[0])
            wait_until(lambda: session.stats().core.host_pages_free >= 6)
        files = server._runtime._shared.sidecar._tiers.lower.files
        files.arm("before_read", sleep_seconds=5.0, one_in=1, seed=1)
        found = []
        loading = threading.Thread(
            target=lambda: found.append(other.open_prompt(prompt(0), 0).cached_tokens)
        )
        loading.start()
        wait_until(lambda: files.num_injected(None) > 0)
        assert session.open_prompt(prompt(3), 0).cached_tokens == PROMPT_PAGES * PAGE_TOKENS
        run_step(session, [(session.open(8, 0), 8)], 1)
        assert loading.is_alive()
        files.disarm()
        loading.join(END_SECONDS)
        assert found == [PROMPT_PAGES * PAGE_TOKENS]


def limit_files_to(server: ServerProgram, num_bytes: int) -> None:
    """The system refuses every write of the server beyond: its file tier fails."""
    hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (num_bytes, hard))


def fill_up(session: RemoteSession, numbers: range) -> None:
    """Prompts one after the other; each needs pages that another left idle."""
    for number in numbers:
        with suppress(HostPoolFull):  # typed, and at once
            sequence, _ = prefill(session, number)
            session.close_sequence(sequence)


def test_a_failing_tier_makes_the_server_degraded_and_not_unhealthy(tmp_path: Path) -> None:
    with (
        program(tmp_path, "run", free_share=0.5, host_pages=12) as server,
        RemoteSession(server.socket_path) as session,
        channel_to(server.socket_path) as channel,
    ):
        check = health_pb2_grpc.HealthStub(channel).Check
        fill_up(session, range(4))
        wait_until(lambda: server_stats(session).tiers[0].demoted > 0)
        assert not server_stats(session).degraded
        limit_files_to(server, 4096)
        fill_up(session, range(10, 20))
        wait_until(lambda: server_stats(session).degraded)
        stats = server_stats(session)
        assert stats.tiers[0].condition in ("full", "degraded")
        assert stats.tiers[0].failed + stats.tiers[0].refused > 0
        assert check(health_pb2.HealthCheckRequest()).status == SERVING
        sequence = session.open(PAGE_TOKENS, 0)  # what fits the host pool is still served
        session.close_sequence(sequence)
        limit_files_to(server, resource.RLIM_INFINITY)

        def is_serving_again() -> bool:
            fill_up(session, range(100, 104))
            return not server_stats(session).degraded

        wait_until(is_serving_again)
        assert prefill(session, 200)[1] == 0


def test_a_server_that_cannot_have_its_files_says_why(tmp_path: Path) -> None:
    with program(tmp_path, "first"):
        folder = tmp_path / "second"
        folder.mkdir()
        with (
            pytest.raises(AssertionError, match="error: "),
            ServerProgram(folder, config_with_files(tmp_path)),
        ):
            raise NotImplementedError
