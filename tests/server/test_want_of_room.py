"""More is asked for than there is: refused at once, with a time to try again; nothing is lost."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import pytest

from hisparse_sidecar import ModelShape, SidecarConfig
from hisparse_sidecar._proto.hisparse.v1 import (
    error_details_pb2,
    sequence_pb2,
    sequence_pb2_grpc,
)
from hisparse_sidecar.client import RemoteSession, SidecarClient
from hisparse_sidecar.errors import DeviceArenaFull, HisparseError, HostPoolFull
from hisparse_sidecar.server import SidecarServer
from hisparse_sidecar.wire.errors import LimitExceeded
from hisparse_sidecar.wire.retry_info import decode_retry_info, encode_retry_info
from tests.pipeline.world import small_config
from tests.server.serving import ServerProgram, run_step, status_of

PAGE_TOKENS = 64
CALL_SECONDS = 10.0


@pytest.fixture
def sequences(channel: grpc.Channel) -> sequence_pb2_grpc.SequenceServiceStub:
    return sequence_pb2_grpc.SequenceServiceStub(channel)


def test_a_refusal_for_want_of_room_says_when_to_try_again(
    sequences: sequence_pb2_grpc.SequenceServiceStub,
) -> None:
    message = sequence_pb2.OpenSequenceRequest(prompt_tokens=65 * PAGE_TOKENS)
    code, text, metadata = status_of(lambda: sequences.OpenSequence(message))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert text == "host pool full: need 65 pages, 64 free of 64"
    assert metadata["hisparse-error"] == "HostPoolFull"
    assert decode_retry_info(metadata.items()) == 0.25
    details = error_details_pb2.StatusDetails.FromString(metadata["grpc-status-details-bin"])  # type: ignore[arg-type]
    assert (details.code, details.message) == (8, text)
    message.prompt_tokens = -1
    code, _, metadata = status_of(lambda: sequences.OpenSequence(message))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert decode_retry_info(metadata.items()) is None


def test_the_time_to_try_again_has_the_bytes_of_google_rpc() -> None:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    ((key, value),) = encode_retry_info(DeviceArenaFull("full"), code, "full", 1.5)
    url = b"type.googleapis.com/google.rpc.RetryInfo"
    info = b"\x0a\x08\x08\x01\x10\x80\xca\xb5\xee\x01"  # retry_delay {seconds: 1, nanos: 5e8}
    detail = b"\x0a" + bytes([len(url)]) + url + b"\x12" + bytes([len(info)]) + info
    assert key == "grpc-status-details-bin"
    assert value == b"\x08\x08\x12\x04full\x1a" + bytes([len(detail)]) + detail
    assert encode_retry_info(LimitExceeded("regions"), code, "regions", 1.5) == ()


@dataclass
class Demand:
    """What one client saw while it asked for its share of more than there is.

    Nobody gives anything back before somebody was refused.
    """

    has_refused: threading.Event
    opened: int = 0
    refused: int = 0
    slowest_seconds: float = 0.0
    failures: list[Exception] = field(default_factory=list)

    def run(self, client: SidecarClient, pages: int, until: float, seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < until or not (self.opened or self.failures):
            self._open_and_close(client, pages, 0.02 * chance.random())

    def _open_and_close(self, client: SidecarClient, pages: int, hold_seconds: float) -> None:
        began = time.monotonic()
        try:
            sequence = client.open_sequence(pages * PAGE_TOKENS, 0)
            self.opened += 1
        except HostPoolFull:
            self.refused += 1
            self.has_refused.set()
            return
        except HisparseError as error:
            self.failures.append(error)
            return
        finally:
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
        self.has_refused.wait(CALL_SECONDS)
        time.sleep(hold_seconds)
        client.close_sequence(sequence)


def resident_bytes(process_id: int) -> int:
    pages = Path(f"/proc/{process_id}/statm").read_text().split()[1]
    return int(pages) * 4096


@contextmanager
def clients_of(server: ServerProgram, count: int) -> Iterator[list[SidecarClient]]:
    clients = [SidecarClient.connect(server.socket_path, CALL_SECONDS) for _ in range(count)]
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


def demand_more_than_there_is(server: ServerProgram, seconds: float) -> list[Demand]:
    """32 clients ask for 3 pages each of a pool of 64: 150 % of it."""
    has_refused = threading.Event()
    demands = [Demand(has_refused) for _ in range(32)]
    with clients_of(server, len(demands)) as clients:
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=demand.run, args=(client, 3, until, seed))
            for seed, (demand, client) in enumerate(zip(demands, clients, strict=True))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 2 * CALL_SECONDS)
            assert not thread.is_alive()
    return demands


def check_demands(server: ServerProgram, demands: list[Demand]) -> None:
    assert [error for demand in demands for error in demand.failures] == []
    assert sum(demand.refused for demand in demands) > 0
    assert all(demand.opened for demand in demands)
    assert max(demand.slowest_seconds for demand in demands) < CALL_SECONDS / 2
    with SidecarClient.connect(server.socket_path) as client:
        core = client.stats().core
        assert core.opened == core.closed == sum(demand.opened for demand in demands)
        assert core.refused == sum(demand.refused for demand in demands)
        client.close_sequence(client.open_sequence(64 * PAGE_TOKENS, 0))  # all of it is back


CROWDED = replace(small_config(), max_sequences=32)


def test_clients_that_ask_for_more_than_there_is_are_refused_at_once(tmp_path: Path) -> None:
    with ServerProgram(_folder(tmp_path), CROWDED) as server:
        check_demands(server, demand_more_than_there_is(server, 1.0))


@pytest.mark.slow
@pytest.mark.full
def test_a_minute_of_refusals_costs_no_memory(tmp_path: Path) -> None:
    with ServerProgram(_folder(tmp_path), CROWDED) as server:
        demand_more_than_there_is(server, 10.0)
        before = resident_bytes(server.process.pid)
        demand_more_than_there_is(server, 60.0)
        assert resident_bytes(server.process.pid) < 1.01 * before


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def admit(session: RemoteSession, asked: int, prompt: int, new: int) -> list[int]:
    """Sequences of those asked for that the server had room for."""
    admitted = []
    for _ in range(asked):
        with suppress(HostPoolFull):
            admitted.append(session.open(prompt, new))
    return admitted


def test_who_is_admitted_never_lacks_a_page_while_decoding(tmp_path: Path) -> None:
    """Twice as many sessions as there is room for, each to grow by a page while decoding."""
    config = replace(
        small_config(), host_pages=30, max_sequences=20, max_step_rows=4, hot_slots=192
    )
    prompt, new = 2 * PAGE_TOKENS - 8, PAGE_TOKENS + 8
    with (
        SidecarServer(config, tmp_path / "s") as server,
        RemoteSession(server.socket_path) as session,
    ):
        admitted = admit(session, 20, prompt, new)
        assert len(admitted) == 10
        for sequence in admitted:
            run_step(session, [(sequence, prompt)], 1)
        for step in range(new // 4):
            run_step(session, [(sequence, 4) for sequence in admitted], step, "decode")
        assert session.stats().core.refused == 10
        assert session.stats().core.host_pages_free == 0
        for sequence in admitted[::2]:
            session.close_sequence(sequence)
        assert len(admit(session, 20, prompt, new)) == 5


def many_sessions(config: SidecarConfig, folder: Path, reopened: int) -> None:
    """As many open sequences as the server takes; some end and others begin, by Zipf's law.

    A sequence has as many pages as the pool has for each.
    """
    count = config.max_sequences
    tokens = 1, config.host_pages // count * PAGE_TOKENS - 1
    with ServerProgram(folder, config) as server:
        with SidecarClient.connect(server.socket_path) as client:
            opened = [client.open_sequence(*tokens) for _ in range(count)]
            with pytest.raises((DeviceArenaFull, HostPoolFull)):
                client.open_sequence(*tokens)
            chance = random.Random(1)
            weights = [1 / (rank + 1) ** 0.9 for rank in range(count)]
            seen = set(opened)
            for place in chance.choices(range(count), weights, k=reopened):
                client.close_sequence(opened[place])
                opened[place] = client.open_sequence(*tokens)
                seen.add(opened[place])
            assert len(seen) == count + reopened  # an id names one sequence for ever
            assert client.stats().core.sequences == count
        with SidecarClient.connect(server.socket_path) as client:
            core = client.stats().core
            assert (core.sequences, core.host_pages_free) == (0, config.host_pages)


def sixteen_pages_each(count: int) -> SidecarConfig:
    """One layer of short rows: 160,000 pages are 7 GB, of which few are touched."""
    return SidecarConfig(
        model=ModelShape(1, (0,), 1, 8, 1.0),
        host_pages=16 * count,
        max_sequences=count,
        kv_layout="fp8",
        backend="reference",
        hot_slots=8,
        window_blocks=2,
    )


def test_hundreds_of_sessions_are_open_at_once(tmp_path: Path) -> None:
    many_sessions(sixteen_pages_each(300), _folder(tmp_path), 200)


@pytest.mark.slow
@pytest.mark.full
def test_ten_thousand_sessions_are_open_at_once(tmp_path: Path) -> None:
    many_sessions(sixteen_pages_each(10_000), _folder(tmp_path), 10_000)
