"""Regions: who may use which bytes, and what is refused."""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import torch

from hisparse_sidecar._core import HostRegion
from hisparse_sidecar._proto.hisparse.v1 import step_pb2, tensor_pb2
from hisparse_sidecar.client import RemoteSession, SidecarClient
from hisparse_sidecar.client.staging import Staging
from hisparse_sidecar.errors import HisparseError, InvalidArgument
from hisparse_sidecar.server import Limits, SidecarServer
from hisparse_sidecar.wire.errors import LimitExceeded, NotOwner, Unauthenticated, UnknownRegion
from tests.pipeline.world import HEADS, random_rows, small_config
from tests.server.serving import SideClient, run_step

MAX_U64 = (1 << 64) - 1
REGION_BYTES = 1 << 20


@dataclass
class OpenStep:
    """A client with a step of one row open, and a good message for its first layer.

    The good message must still work at the end, unless the test has closed the region.
    """

    client: SidecarClient
    staging: Staging
    good: step_pb2.RunLayerRequest
    is_good: bool = True

    def refused(self, message: step_pb2.RunLayerRequest) -> Exception:
        before = self.staging._bytes.clone()
        with pytest.raises(HisparseError) as refused:
            self.client.run_layer(message)
        assert torch.equal(self.staging._bytes, before)
        return refused.value


@pytest.fixture
def step(server: SidecarServer) -> Iterator[OpenStep]:
    with SidecarClient.connect(server.socket_path) as client:
        staging = Staging(client, REGION_BYTES)
        sequence = client.open_sequence(4, 0)
        rows = random_rows(small_config(), 0, 1, 1)
        names = ("query", "kv", "index_q", "index_weights", "index_k")
        inputs = {name: staging.place(getattr(rows, name)) for name in names}
        outputs = {
            "out": staging.reserve((1, HEADS, 512), torch.float32),
            "lse": staging.reserve((1, HEADS), torch.float32),
            "topk_indices": staging.reserve((1, 48), torch.int32),
        }
        good = step_pb2.RunLayerRequest(
            step_id=client.begin_step([(sequence, 1)], "prefill"),
            inputs=step_pb2.LayerInputRefs(**inputs),
            outputs=step_pb2.LayerOutputRefs(**outputs),
        )
        step = OpenStep(client, staging, good)
        yield step
        if step.is_good:
            client.run_layer(good)
        staging.close()


def changed(step: OpenStep, role: str, name: str, **values: object) -> step_pb2.RunLayerRequest:
    message = step_pb2.RunLayerRequest()
    message.CopyFrom(step.good)
    ref: tensor_pb2.TensorRef = getattr(getattr(message, role), name)
    if "shape" in values:
        ref.ClearField("shape")
    ref.MergeFrom(tensor_pb2.TensorRef(**values))  # type: ignore[arg-type]
    return message


BAD_REFS: dict[str, tuple[dict[str, object], str]] = {
    "end beyond the region": ({"offset_bytes": REGION_BYTES - 64}, "to 10.*, region . has 1048576"),
    "offset beyond the region": ({"offset_bytes": 1 << 40}, "1099511627776 to .* has 1048576"),
    "offset near 2**64": (
        {"offset_bytes": MAX_U64 - 63},
        f"{MAX_U64 - 63} to 184467440737095.* has 1048576",
    ),
    "misaligned": ({"offset_bytes": 100}, "starts at byte 100, needs a multiple of 64"),
    "a product that overflows": (
        {"shape": [1 << 32, 1 << 32, 1]},
        r"to 737869762948382\d+, region",
    ),
    "negative size": ({"shape": [-1, 3, 576]}, r"\(-1, 3, 576\), needs .* >= 0"),
    "no shape": ({"shape": []}, r"\(\), needs 1 to 4 dimensions"),
    "five dimensions": ({"shape": [1] * 5}, r"needs 1 to 4 dimensions"),
    "unknown dtype": ({"dtype": 77}, "number 77, needs one of 1"),
    "integers": ({"dtype": tensor_pb2.DTYPE_INT32}, "torch.int32"),
}


@pytest.mark.parametrize("name", list(BAD_REFS))
@pytest.mark.parametrize("role", ["inputs", "outputs"])
def test_a_bad_reference_is_refused_with_both_numbers(step: OpenStep, role: str, name: str) -> None:
    values, message = BAD_REFS[name]
    tensor = "query" if role == "inputs" else "out"
    error = step.refused(changed(step, role, tensor, **values))
    assert isinstance(error, InvalidArgument)
    with pytest.raises(InvalidArgument, match=message):
        raise error


def test_a_shape_that_is_not_of_the_layer_is_refused(step: OpenStep) -> None:
    error = step.refused(changed(step, "outputs", "lse", shape=[1, 2]))
    assert str(error) == "output lse has shape (1, 2), needs (1, 3)"
    error = step.refused(changed(step, "inputs", "kv", shape=[2, 288]))
    assert str(error) == "kv has shape (2, 288), needs (1, 576)"


def test_outputs_that_share_bytes_are_refused(step: OpenStep) -> None:
    first = step.good.outputs.out.offset_bytes
    error = step.refused(changed(step, "outputs", "lse", offset_bytes=first + 64))
    assert str(error) == "outputs out and lse share 12 bytes, need 0"


@pytest.mark.parametrize("name", ["out", "lse", "topk_indices"])
def test_a_missing_output_is_refused(step: OpenStep, name: str) -> None:
    message = step_pb2.RunLayerRequest()
    message.CopyFrom(step.good)
    message.outputs.ClearField(name)  # type: ignore[arg-type]
    assert str(step.refused(message)) == f"output {name} is unset, needs a tensor"


def test_a_region_that_nobody_has_is_refused(step: OpenStep) -> None:
    error = step.refused(changed(step, "inputs", "kv", region_id=MAX_U64))
    assert isinstance(error, UnknownRegion)
    assert str(error) == f"region {MAX_U64} is not known, client 1 has [1]"


def test_a_region_of_another_client_is_refused(step: OpenStep, server: SidecarServer) -> None:
    with SidecarClient.connect(server.socket_path) as other:
        region = other.create_region(REGION_BYTES)
        for role, name in (("inputs", "kv"), ("outputs", "out")):
            error = step.refused(changed(step, role, name, region_id=region.region_id))
            assert isinstance(error, NotOwner)
            assert str(error) == "region 2 belongs to client 2, the caller is client 1"
        with pytest.raises(NotOwner, match="region 1 belongs to client 1, the caller is client 2"):
            other.close_region(1)


def test_a_closed_region_is_refused(step: OpenStep) -> None:
    step.is_good = False
    step.client.close_region(1)
    with pytest.raises(UnknownRegion, match=r"region 1 is not known, client 1 has \[\]"):
        step.client.run_layer(step.good)
    with pytest.raises(UnknownRegion):
        step.client.close_region(1)


def test_a_connectionless_caller_has_no_region(server: SidecarServer) -> None:
    with SidecarClient(grpc.insecure_channel(f"unix:{server.socket_path}")) as client:
        with pytest.raises(Unauthenticated, match="connect to the side socket first"):
            client.create_region(4096)
        sequence = client.open_sequence(1, 1)
        with pytest.raises(Unauthenticated):
            client.begin_step([(sequence, 1)], "decode")
        client.close_sequence(sequence)


@pytest.mark.parametrize("num_bytes", [0, -1, 1 << 62])
def test_a_region_of_an_impossible_size_is_refused(server: SidecarServer, num_bytes: int) -> None:
    with SidecarClient.connect(server.socket_path) as client:
        with pytest.raises(HisparseError, match=str(num_bytes)):
            client.create_region(num_bytes)
        assert client.create_region(1).num_bytes == 1


def test_regions_are_limited_for_each_client(tmp_path: Path) -> None:
    limits = Limits(max_region_bytes=10_000, max_regions=2)
    with (
        SidecarServer(small_config(), tmp_path / "s", limits=limits),
        SidecarClient.connect(tmp_path / "s") as client,
    ):
        with pytest.raises(LimitExceeded, match=r"has 0 bytes .* asks for 10001, .* 10000"):
            client.create_region(10_001)
        first = client.create_region(5000)
        client.create_region(5000)
        with pytest.raises(LimitExceeded, match="has 2 regions, the limit is 2"):
            client.create_region(1)
        client.close_region(first.region_id)
        client.create_region(5000)


def test_the_descriptor_is_sealed_and_fetched_once_by_its_owner(server: SidecarServer) -> None:
    with (
        SidecarClient.connect(server.socket_path) as client,
        SidecarClient.connect(server.socket_path) as other,
    ):
        token = client.create_region(4096).region_token
        with pytest.raises(HisparseError, match="fetches none of the 0 regions"):
            other.fetch_region(token)
        descriptor = client.fetch_region(token)
        with pytest.raises(HisparseError, match="fetches none of the 1 regions"):
            client.fetch_region(token)
        for size in (0, 8192):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
        memory = HostRegion.attach(descriptor)
        os.close(descriptor)
        client.close_region(1)
        memoryview(memory)[4095] = 1  # the client's own mapping outlives the server's
        memory.close()


BAD_LINES: dict[str, tuple[bytes, str]] = {
    "unknown word": (b"OPEN 1\n", "ERROR the line starts with 'OPEN', needs 'FETCH' or 'ALIVE'\n"),
    "empty": (b"\n", "ERROR the line starts with '', needs 'FETCH' or 'ALIVE'\n"),
    "wrong token": (b"FETCH ../../etc/passwd\n", "ERROR the token fetches none of the 0 regions\n"),
    "no ASCII": (b"\xff\x00\n", "ERROR the line starts with '�\\x00', needs 'FETCH' or 'ALIVE'\n"),
    "endless": (b"x" * 9000, "ERROR a line has over 4096 bytes\n"),
}


@pytest.mark.parametrize("name", list(BAD_LINES))
def test_a_bad_line_on_the_side_socket_is_answered(server: SidecarServer, name: str) -> None:
    line, answer = BAD_LINES[name]
    with SideClient(server.socket_path) as side:
        assert side.hear()[0].startswith("HISPARSE 1 1 ")
        side.say(line)
        assert side.hear() == (answer, [])
    with RemoteSession(server.socket_path) as session:
        run_step(session, [(session.open(1, 0), 1)], 1)


def test_connections_to_the_side_socket_are_limited(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="max_clients is 0, needs >= 1"):
        Limits(max_clients=0)
    limits = Limits(max_clients=1)
    with (
        SidecarServer(small_config(), tmp_path / "s", limits=limits),
        SideClient(tmp_path / "s") as first,
    ):
        assert first.hear()[0].startswith("HISPARSE 1 1 ")
        with SideClient(tmp_path / "s") as second:
            assert second.hear()[0] == "ERROR 1 clients are connected, the limit is 1\n"
        first.socket.shutdown(socket.SHUT_WR)
        assert first.hear()[0] == ""  # the server has freed what the client owned
        with SideClient(tmp_path / "s") as third:
            assert third.hear()[0].startswith("HISPARSE 1 2 ")


def test_the_side_socket_is_for_the_servers_own_user(
    server: SidecarServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = os.geteuid()
    monkeypatch.setattr("hisparse_sidecar.server.side_socket.os.geteuid", lambda: caller + 1)
    with SideClient(server.socket_path) as side:
        expected = f"ERROR the caller is user {caller}, the server is user {caller + 1}\n"
        assert side.hear() == (expected, [])


def test_what_a_client_owned_ends_with_its_connection(server: SidecarServer) -> None:
    token_of: Callable[[SidecarClient], tuple] = lambda client: client._metadata  # noqa: E731
    with SidecarClient.connect(server.socket_path) as watcher:
        client = SidecarClient.connect(server.socket_path)
        sequence = client.open_sequence(10, 0)
        client.create_region(4096)
        client.begin_step([(sequence, 5)], "prefill")
        assert watcher.stats().core.sequences == 1
        metadata = token_of(client)
        client.close()
        stats = watcher.stats()
        assert (stats.core.sequences, stats.aborted_steps) == (0, 1)
        assert stats.core.host_pages_free == stats.core.host_pages_total
        with (
            SidecarClient(grpc.insecure_channel(f"unix:{server.socket_path}"), metadata) as ghost,
            pytest.raises(Unauthenticated, match="names none of 1 clients"),
        ):
            ghost.open_sequence(1, 1)
