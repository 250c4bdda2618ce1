"""Clients that ask for more than they read: bounded, ended in time, and no one else's trouble."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from hisparse_sidecar._proto.hisparse.v1 import step_pb2, step_pb2_grpc, tensor_pb2
from hisparse_sidecar.client import RemoteSession, SidecarClient
from hisparse_sidecar.wire.names import CLIENT_KEY
from tests.server.serving import ServerProgram, run_step, status_of, wait_until

LIMIT_SECONDS = 1.5
LAYER = step_pb2.RunLayerRequest(
    step_id=7,  # of no step: each is answered at once, with a refusal
    inputs=step_pb2.LayerInputRefs(query=tensor_pb2.TensorRef(shape=[1 << 40] * 150)),
)
WINDOW_BYTES = 64 << 10
FEW_BYTES = 4 << 10  # of a window that is soon full
MOST_BUFFERED = 3000  # responses in flight, generously: a refusal has over 100 bytes


def options(window_bytes: int) -> tuple[tuple[str, int], ...]:
    """A small window keeps the client's own memory small; the server's is what we test."""
    return (
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", window_bytes),
        ("grpc.use_local_subchannel_pool", 1),
    )


class SlowReader:
    """A stream of layers that sends without end; it reads only when told to."""

    def __init__(self, socket_path: Path, window_bytes: int = WINDOW_BYTES) -> None:
        self._owner = SidecarClient.connect(socket_path)
        self.metadata = self._owner._metadata
        assert self.metadata[0][0] == CLIENT_KEY
        self.client = SidecarClient(
            grpc.insecure_channel(f"unix:{socket_path}", options(window_bytes)), self.metadata
        )
        self.sent = 0
        stub = step_pb2_grpc.StepServiceStub(self.client._channel)
        self.stream = stub.RunLayers(self._requests(), metadata=self.metadata)

    def _requests(self) -> Iterator[step_pb2.RunLayersRequest]:
        while True:
            self.sent += 1
            yield step_pb2.RunLayersRequest(layer=LAYER)

    def is_held_up(self) -> bool:
        before = self.sent
        time.sleep(0.1)
        return 0 < before == self.sent

    def read(self, responses: int, seconds_each: float = 0.0) -> None:
        for _ in range(responses):
            assert next(self.stream).refused.error == "WrongState"
            time.sleep(seconds_each)

    def end(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ends for who now reads all that was on its way."""
        code, message, metadata = status_of(lambda: self.read(MOST_BUFFERED))
        assert metadata["hisparse-error"] == "LimitExceeded"
        return code, message

    def __enter__(self) -> "SlowReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.cancel()
        self.client.close()
        self._owner.close()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[ServerProgram]:
    folder = tmp_path / "run"
    folder.mkdir()
    flags = ("--max-unread-seconds", str(LIMIT_SECONDS))
    with ServerProgram(folder, None, *flags) as server:
        yield server


def test_who_reads_nothing_is_held_up_then_ended_and_loses_its_step(program: ServerProgram) -> None:
    with RemoteSession(program.socket_path) as other:
        with SlowReader(program.socket_path) as slow:
            slow.client.begin_step([(slow.client.open_sequence(8, 0), 8)], "prefill")
            wait_until(slow.is_held_up)
            assert slow.sent * LAYER.ByteSize() < 1 << 20  # what both sides hold for the stream
            run_step(other, [(other.open(8, 0), 8)], 1)  # its turn comes when that step is aborted
            assert other.stats().aborted_steps == 1
            code, message = slow.end()
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert f"at most {LIMIT_SECONDS:g} s" in message
        wait_until(lambda: other.stats().core.sequences == 1)


def test_who_reads_a_little_now_and_then_is_ended_too(program: ServerProgram) -> None:
    with SlowReader(program.socket_path) as slow:
        wait_until(slow.is_held_up)
        slow.read(int(3 * LIMIT_SECONDS / 0.05), seconds_each=0.05)
        assert slow.end()[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_who_is_late_and_catches_up_goes_on(program: ServerProgram) -> None:
    with SlowReader(program.socket_path) as slow:
        for _ in range(6):  # together they are longer than the limit
            wait_until(slow.is_held_up)
            time.sleep(LIMIT_SECONDS / 4)
            slow.read(MOST_BUFFERED)


@contextlib.contextmanager
def slow_readers(program: ServerProgram, count: int) -> Iterator[list[SlowReader]]:
    """So many of them, all held up at once."""
    with contextlib.ExitStack() as stack:
        each = [SlowReader(program.socket_path, FEW_BYTES) for _ in range(count)]
        readers = [stack.enter_context(reader) for reader in each]
        wait_until(lambda: are_held_up(readers))
        yield readers


def are_held_up(readers: list[SlowReader]) -> bool:
    before = [reader.sent for reader in readers]
    time.sleep(1.0)
    return 0 not in before and before == [reader.sent for reader in readers]


def test_fifty_slow_readers_do_not_hold_up_the_others(tmp_path: Path) -> None:
    with (
        patient_program(tmp_path) as program,
        RemoteSession(program.socket_path) as other,
        slow_readers(program, 50) as readers,
    ):
        sequence = other.open(64, 0)
        for step in range(8):
            run_step(other, [(sequence, 8)], step)
        assert other.stats().steps == 8
        assert are_held_up(readers)
        assert max(reader.sent for reader in readers) * LAYER.ByteSize() < 1 << 20


@pytest.mark.slow
@pytest.mark.full
def test_fifty_who_read_a_message_a_second_are_ended_after_half_a_minute(tmp_path: Path) -> None:
    with patient_program(tmp_path) as program, slow_readers(program, 50) as readers:
        for _ in range(25):
            time.sleep(1.0)
            for reader in readers:
                reader.read(1)
        time.sleep(10.0)
        for reader in readers:
            code, message = reader.end()
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "at most 30 s" in message
            assert reader.sent * LAYER.ByteSize() < 1 << 20


def patient_program(tmp_path: Path) -> ServerProgram:
    """A server that waits for its readers for as long as servers do."""
    folder = tmp_path / "run"
    folder.mkdir()
    return ServerProgram(folder)
