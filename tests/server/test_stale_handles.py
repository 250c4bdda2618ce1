"""A handle that has ended is refused by every call, and refusing changes nothing."""

from collections.abc import Callable

import grpc
import pytest

from hisparse_sidecar._proto.hisparse.v1 import sequence_pb2, sequence_pb2_grpc
from hisparse_sidecar.client import RemoteSession, SidecarClient
from hisparse_sidecar.errors import StaleHandle, UnknownSequence, WrongState
from hisparse_sidecar.server import SidecarServer
from tests.server.serving import run_step, status_of

Call = Callable[[SidecarClient, int], object]
CALLS: dict[str, Call] = {
    "close": lambda client, sequence: client.close_sequence(sequence),
    "truncate": lambda client, sequence: client.truncate_sequence(sequence, 0),
    "fork": lambda client, sequence: client.fork_sequence(sequence, 0, 1),
    "preempt": lambda client, sequence: client.preempt_sequence(sequence),
    "resume": lambda client, sequence: client.resume_sequence(sequence),
    "count": lambda client, sequence: client.tier_bytes(sequence),
    "step": lambda client, sequence: client.begin_step([(sequence, 1)], "decode"),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_a_closed_sequence_is_stale_for_ever(session: RemoteSession, name: str) -> None:
    client = session.client
    closed = client.open_sequence(100, 0)
    run_step(session, [(closed, 100)], 1)
    client.close_sequence(closed)
    for _ in range(8):  # the entry in the core's table serves others meanwhile
        other = client.open_sequence(100, 0)
        before = client.stats()
        for _ in range(2):
            with pytest.raises(StaleHandle, match="stale sequence handle"):
                CALLS[name](client, closed)
        assert client.stats() == before
        client.close_sequence(other)


@pytest.mark.parametrize("name", list(CALLS))
@pytest.mark.parametrize("sequence", [0, 1, 99 << 32, (1 << 64) - 1])
def test_a_handle_that_was_never_given_out_is_unknown(
    session: RemoteSession, name: str, sequence: int
) -> None:
    before = session.stats()
    with pytest.raises(UnknownSequence, match="unknown sequence 0x"):
        CALLS[name](session.client, sequence)
    assert session.stats() == before


def test_closing_twice_is_a_failed_precondition_on_the_wire(
    channel: grpc.Channel, session: RemoteSession
) -> None:
    stub = sequence_pb2_grpc.SequenceServiceStub(channel)
    opened = stub.OpenSequence(sequence_pb2.OpenSequenceRequest(prompt_tokens=64))
    close = sequence_pb2.CloseSequenceRequest(sequence_id=opened.sequence_id)
    stub.CloseSequence(close)
    before = session.stats()
    code, message, metadata = status_of(lambda: stub.CloseSequence(close))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert metadata["hisparse-error"] == "StaleHandle"
    assert "found generation 1, needed 2" in message
    assert session.stats() == before


def test_a_step_that_has_ended_is_refused(server: SidecarServer, session: RemoteSession) -> None:
    sequence = session.open(8, 0)
    step_id = session.client.begin_step([(sequence, 1)], "prefill")
    session.client.end_step(step_id, commit=False)
    before = session.stats()
    for commit in (True, False):
        with pytest.raises(WrongState, match=f"step {step_id} is not open"):
            session.client.end_step(step_id, commit=commit)
    assert session.stats() == before
