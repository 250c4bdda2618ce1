"""The order of calls within a step, streams, and several clients."""

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from hisparse_sidecar import Sidecar
from hisparse_sidecar._proto.hisparse.v1 import (
    sequence_pb2,
    sequence_pb2_grpc,
    step_pb2,
    step_pb2_grpc,
)
from hisparse_sidecar.client import RemoteSession, SidecarClient
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.server import Limits, SidecarServer, admissions
from hisparse_sidecar.server.clients import Client
from hisparse_sidecar.server.shared_sidecar import SharedSidecar
from hisparse_sidecar.wire.errors import NotOwner
from tests.pipeline.world import random_rows, small_config
from tests.server.serving import assert_equal, run_layers, run_step, wait_until

WAIT_SECONDS = 20.0


@pytest.fixture
def other(server: SidecarServer) -> Iterator[RemoteSession]:
    with RemoteSession(server.socket_path) as opened:
        yield opened


def test_calls_out_of_order_are_refused_and_the_right_order_then_works(
    session: RemoteSession,
) -> None:
    rows = [(session.open(4, 4), 2)]
    inputs = random_rows(session.config, 0, 2, 1)
    for call in (session.end_step, session.abort_step, lambda: session.run_layer(0, inputs)):
        with pytest.raises(WrongState, match="step 0 is not open, client 1 has no step open"):
            call()
    session.begin_step(rows, "prefill")
    with pytest.raises(WrongState, match="step 1"):
        session.begin_step(rows, "prefill")
    with pytest.raises(WrongState, match="layer 1 needs the selection of layer 0"):
        session.run_layer(1, random_rows(session.config, 1, 2, 1))
    session.run_layer(0, inputs)
    with pytest.raises(WrongState, match="layer 0 ran already in step 1"):
        session.run_layer(0, inputs)
    with pytest.raises(WrongState, match="ran 1 layers, the model has 3"):
        session.end_step()
    for call in (
        lambda: session.truncate(rows[0][0], 0),
        lambda: session.fork(rows[0][0], 0, 1),
        lambda: session.close_sequence(rows[0][0]),
    ):
        with pytest.raises(WrongState, match="step"):
            call()
    session.abort_step()
    run_step(session, rows, 1)


def test_unary_calls_and_the_stream_give_the_same_bits(server: SidecarServer) -> None:
    with RemoteSession(server.socket_path) as session:
        streamed = run_step(session, [(session.open(70, 0), 70)], 1)

        class Unary:
            run = session.client.run_layer
            is_open = staticmethod(lambda: True)
            close = staticmethod(lambda: None)

        assert session._stream is not None
        session._stream.close()
        session._stream = Unary()  # type: ignore[assignment]
        assert_equal(run_step(session, [(session.open(70, 0), 70)], 1), streamed)


def test_a_dropped_stream_aborts_the_step(session: RemoteSession) -> None:
    rows = [(session.open(4, 4), 2)]
    session.begin_step(rows, "prefill")
    session.run_layer(0, random_rows(session.config, 0, 2, 1))
    assert session._stream is not None
    session._stream._responses.cancel()
    wait_until(lambda: session.stats().aborted_steps == 1)
    with pytest.raises(WrongState, match="step 1 is not open"):
        session.run_layer(1, random_rows(session.config, 1, 2, 1))
    run_step(session, rows, 1)


def test_a_stream_that_is_closed_leaves_the_step_open(session: RemoteSession) -> None:
    rows = [(session.open(4, 4), 2)]
    session.begin_step(rows, "prefill")
    run_layers(session, rows, 1)
    assert session._stream is not None
    session._stream.close()
    session.end_step()
    assert session.stats().steps == 1


def test_a_client_waits_while_another_has_a_step_open(
    session: RemoteSession, other: RemoteSession
) -> None:
    rows, parent = [(session.open(4, 4), 2)], other.open(8, 0)
    session.begin_step(rows, "prefill")
    calls = [
        lambda: other.begin_step([(parent, 1)], "prefill"),
        lambda: other.truncate(parent, 0),
        lambda: other.fork(parent, 0, 1),
    ]
    for call in calls:
        waiting = threading.Thread(target=call)
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        run_layers(session, rows, 1)
        session.end_step()
        waiting.join(WAIT_SECONDS)
        assert not waiting.is_alive()
        if call is calls[0]:
            other.abort_step()
        session.begin_step([(rows[0][0], 1)], "decode")
        rows = [(rows[0][0], 1)]
    session.abort_step()


def test_a_call_that_gives_up_waiting_leaves_nothing_behind(
    session: RemoteSession, server: SidecarServer
) -> None:
    rows = [(session.open(4, 4), 2)]
    session.begin_step(rows, "prefill")
    with SidecarClient.connect(server.socket_path, timeout_seconds=0.3) as impatient:
        sequence = impatient.open_sequence(2, 0)
        with pytest.raises(Exception, match="Deadline Exceeded"):
            impatient.begin_step([(sequence, 1)], "prefill")
    run_layers(session, rows, 1)
    session.end_step()
    run_step(session, [(rows[0][0], 1)], 2, "decode")
    assert session.stats().core.sequences == 1


def num_waiting_jobs(server: SidecarServer) -> int:
    """Behind the one that runs: what a cancelled call leaves to be undone."""
    return server._runtime._worker._executor._work_queue.qsize()


@pytest.mark.parametrize("name", ["admit", "adopt"])
@pytest.mark.parametrize("opened", [{"prompt_tokens": 4}, {"token_ids": range(4)}])
def test_a_sequence_whose_caller_gave_up_is_closed_again(
    name: str,
    opened: dict,
    server: SidecarServer,
    session: RemoteSession,
    channel: grpc.Channel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also while it is admitted, as a long prompt is: in a thread of its own."""
    entered, leave = threading.Event(), threading.Event()
    name = "admit_prompt" if name == "admit" and "token_ids" in opened else name
    method = getattr(Sidecar, name)

    def slow(*args: object, **options: object) -> object:
        entered.set()
        leave.wait(WAIT_SECONDS)
        return method(*args, **options)

    monkeypatch.setattr(admissions, "_AT_ONCE_TOKENS", -1)
    monkeypatch.setattr(Sidecar, name, slow)
    sequences = sequence_pb2_grpc.SequenceServiceStub(channel)
    opening = sequences.OpenSequence.future(sequence_pb2.OpenSequenceRequest(**opened))
    assert entered.wait(WAIT_SECONDS)
    opening.cancel()
    wait_until(lambda: server._runtime._gate.num_calls == 0)
    leave.set()
    wait_until(lambda: session.stats().core.closed == 1)
    assert session.stats().core.sequences == 0


def test_a_prompt_that_gives_up_waiting_for_its_turn_leaves_nothing_behind(
    session: RemoteSession, server: SidecarServer
) -> None:
    rows = [(session.open(4, 4), 2)]
    session.begin_step(rows, "prefill")
    with SidecarClient.connect(server.socket_path, timeout_seconds=0.3) as impatient:
        with pytest.raises(Exception, match="Deadline Exceeded"):
            impatient.open_prompt([1, 2, 3], 0)
        wait_until(lambda: session.stats().core.closed == 1)
        assert session.stats().core.sequences == 1
    run_layers(session, rows, 1)
    session.end_step()


def test_a_layer_whose_caller_gave_up_aborts_the_step(
    server: SidecarServer,
    session: RemoteSession,
    channel: grpc.Channel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, leave, run = threading.Event(), threading.Event(), SharedSidecar.open_step

    def slow(shared: SharedSidecar, client: Client, number: int) -> object:
        entered.set()
        leave.wait(WAIT_SECONDS)
        return run(shared, client, number)

    rows = [(session.open(4, 4), 2)]
    session.begin_step(rows, "prefill")
    with monkeypatch.context() as patched:
        patched.setattr(SharedSidecar, "open_step", slow)
        steps = step_pb2_grpc.StepServiceStub(channel)
        layer = step_pb2.RunLayerRequest(step_id=1)
        running = steps.RunLayer.future(layer, metadata=session.client._metadata)
        assert entered.wait(WAIT_SECONDS)
        running.cancel()
        wait_until(lambda: num_waiting_jobs(server) > 0)
        leave.set()
    wait_until(lambda: session.stats().aborted_steps == 1)
    run_step(session, rows, 1)


def test_what_one_client_opened_is_no_other_clients(
    session: RemoteSession, other: RemoteSession
) -> None:
    sequence = session.open(8, 8)
    message = f"sequence {sequence} belongs to client 1, the caller is client 2"
    for call in (
        lambda: other.close_sequence(sequence),
        lambda: other.truncate(sequence, 0),
        lambda: other.fork(sequence, 0, 1),
        lambda: other.tier_bytes(sequence),
        lambda: other.begin_step([(sequence, 1)], "prefill"),
    ):
        with pytest.raises(NotOwner, match=message):
            call()
    session.begin_step([(sequence, 1)], "prefill")
    with pytest.raises(NotOwner, match="step 1 belongs to client 1, the caller is client 2"):
        other.client.end_step(1, commit=True)
    session.abort_step()


def test_a_connectionless_sequence_is_everyones_and_outlives_its_caller(
    server: SidecarServer,
) -> None:
    target = f"unix:{server.socket_path}"
    with grpc.insecure_channel(target) as channel:
        stub = sequence_pb2_grpc.SequenceServiceStub(channel)
        opened = stub.OpenSequence(sequence_pb2.OpenSequenceRequest(prompt_tokens=4))
    with RemoteSession(server.socket_path) as session:
        run_step(session, [(opened.sequence_id, 4)], 1)
    with RemoteSession(server.socket_path) as session:
        assert session.stats().core.sequences == 1
        session.close_sequence(opened.sequence_id)
        assert session.stats().core.sequences == 0


def test_a_step_that_nobody_uses_is_aborted(tmp_path: Path) -> None:
    limits = Limits(max_step_idle_seconds=0.2)
    with (
        SidecarServer(small_config(), tmp_path / "s", limits=limits),
        RemoteSession(tmp_path / "s") as session,
    ):
        rows = [(session.open(4, 4), 2)]
        session.begin_step(rows, "prefill")
        wait_until(lambda: session.stats().aborted_steps == 1)
        with pytest.raises(WrongState, match="step 1 is not open"):
            session.end_step()
        run_step(session, rows, 1)
