"""Sockets, TCP and its token, limits, health and reflection."""

import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from hisparse_sidecar._proto.hisparse.v1 import (
    sequence_pb2,
    sequence_pb2_grpc,
    sidecar_pb2,
    sidecar_pb2_grpc,
    step_pb2,
    step_pb2_grpc,
)
from hisparse_sidecar.client import RemoteSession, SidecarClient
from hisparse_sidecar.errors import HisparseError, InvalidArgument, WrongState
from hisparse_sidecar.server import Limits, ServerOptions, SidecarServer, TcpOptions
from hisparse_sidecar.wire.errors import ServerUnavailable, Unauthenticated
from tests.pipeline.world import small_config
from tests.server.serving import run_step, status_of

TOKEN = "a token of the tests, long enough"


# -- sockets ----------------------------------------------------------------------------------


def test_both_sockets_are_for_the_owner_alone_and_go_with_the_server(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        with SidecarServer(small_config(), tmp_path / "s"):
            for name in ("s", "s.fd"):
                mode = (tmp_path / name).stat().st_mode
                assert stat.S_ISSOCK(mode)
                assert stat.S_IMODE(mode) == 0o600
        assert list(tmp_path.iterdir()) == []
        assert os.umask(0) == 0
    finally:
        os.umask(umask)


def test_a_live_server_is_not_replaced(server: SidecarServer) -> None:
    with pytest.raises(WrongState, match=r"a live server listens on .*sidecar\.sock, stop it"):
        SidecarServer(small_config(), server.socket_path).start()
    with RemoteSession(server.socket_path) as session:
        run_step(session, [(session.open(1, 0), 1)], 1)


def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    for name in ("s", "s.fd"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / name))
    with SidecarServer(small_config(), tmp_path / "s"), RemoteSession(tmp_path / "s") as session:
        session.open(1, 0)


@pytest.mark.parametrize("name", ["s", "s.fd"])
def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(WrongState, match=r"is no socket .* left alone"):
        SidecarServer(small_config(), tmp_path / "s").start()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]


def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"has \d+ bytes, a socket's path 107"):
        ServerOptions(tmp_path / ("x" * 108))
    with pytest.raises(InvalidArgument, match="is no directory"):
        ServerOptions(tmp_path / "missing" / "s")


def test_no_server_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailable, match=r"no server on .*nobody\.fd"):
        RemoteSession(tmp_path / "nobody")


# -- TCP --------------------------------------------------------------------------------------


def test_tcp_needs_a_token_or_client_certificates() -> None:
    for options in ({}, {"certificate": b"c", "key": b"k"}):
        with pytest.raises(InvalidArgument, match="needs a token, or TLS with a client authority"):
            TcpOptions("127.0.0.1:0", **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="token has 5 characters, needs >= 16"):
        TcpOptions("127.0.0.1:0", token="short")
    with pytest.raises(InvalidArgument, match="found one of the two"):
        TcpOptions("127.0.0.1:0", token=TOKEN, key=b"k")
    with pytest.raises(InvalidArgument, match="found no certificate"):
        TcpOptions("127.0.0.1:0", client_authority=b"c")


def test_tcp_serves_who_has_the_token_and_nobody_else(tmp_path: Path) -> None:
    tcp = TcpOptions("127.0.0.1:0", token=TOKEN)
    with SidecarServer(small_config(), tmp_path / "s", tcp=tcp) as server:
        address = f"127.0.0.1:{server.tcp_port}"
        with SidecarClient.connect_tcp(address, TOKEN) as client:
            sequence = client.open_sequence(4, 0)
            assert client.stats().core.sequences == 1
            client.close_sequence(sequence)
        for wrong in (None, TOKEN + "x", TOKEN[:-1], ""):
            with SidecarClient.connect_tcp(address, wrong) as client:
                for call in (client.server_info, lambda: client.open_sequence(1, 0)):
                    with pytest.raises(Unauthenticated, match="authorization"):
                        call()
        with grpc.insecure_channel(address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            code, _, _ = status_of(lambda: check(health_pb2.HealthCheckRequest()))
            assert code is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError, match="authorization"):
                ProtoReflectionDescriptorDatabase(channel).get_services()
        with RemoteSession(tmp_path / "s") as session:  # the Unix socket needs none
            assert session.stats().core.opened == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")
def test_tls_serves_who_has_a_certificate_of_the_authority(tmp_path: Path) -> None:
    authority, ours, stranger = (tmp_path / name for name in ("authority", "ours", "stranger"))
    for name in (authority, ours, stranger):
        make_certificate(name, authority if name is ours else name)
    pem = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    tcp = TcpOptions(
        "127.0.0.1:0",
        certificate=pem["ours.crt"],
        key=pem["ours.key"],
        client_authority=pem["authority.crt"],
    )
    with SidecarServer(small_config(), tmp_path / "s", tcp=tcp) as server:
        address = f"127.0.0.1:{server.tcp_port}"
        for name, expected in (("ours", True), ("stranger", False), (None, False)):
            chain = (pem[f"{name}.key"], pem[f"{name}.crt"]) if name else (None, None)
            credentials = grpc.ssl_channel_credentials(pem["authority.crt"], *chain)
            with SidecarClient.connect_tcp(address, None, credentials, 10.0) as client:
                if expected:
                    client.close_sequence(client.open_sequence(1, 0))
                else:
                    with pytest.raises(ServerUnavailable):
                        client.server_info()


def make_certificate(path: Path, signer: Path) -> None:
    """`path`.key and `path`.crt for 127.0.0.1, signed by `signer`."""
    key, certificate = f"{path}.key", f"{path}.crt"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "1", "-subj", f"/CN={path.name}", "-keyout", key]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", certificate]
    if signer != path:
        command += ["-CA", f"{signer}.crt", "-CAkey", f"{signer}.key"]
    subprocess.run(command, check=True, capture_output=True)


def test_a_tcp_port_in_use_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        tcp = TcpOptions(address, token=TOKEN)
        with pytest.raises(HisparseError, match=f"cannot bind {address}"):
            SidecarServer(small_config(), tmp_path / "s", tcp=tcp).start()
    assert list(tmp_path.iterdir()) == []


# -- statuses and limits ----------------------------------------------------------------------


def test_a_status_has_code_exception_and_both_numbers(channel: grpc.Channel) -> None:
    sequences = sequence_pb2_grpc.SequenceServiceStub(channel)
    kind = sequence_pb2.OpenSequenceRequest
    codes = grpc.StatusCode
    close = sequences.CloseSequence
    opened = sequences.OpenSequence(kind(prompt_tokens=5)).sequence_id
    close(sequence_pb2.CloseSequenceRequest(sequence_id=opened))
    cases = [
        (lambda: sequences.OpenSequence(kind(prompt_tokens=-7)), codes.INVALID_ARGUMENT,
         "InvalidArgument", "prompt_tokens: found -7, needed 0 to 4294967295"),
        (lambda: sequences.OpenSequence(kind(prompt_tokens=6400)), codes.RESOURCE_EXHAUSTED,
         "HostPoolFull", "host pool full: need 100 pages, 64 free of 64"),
        (lambda: close(sequence_pb2.CloseSequenceRequest(sequence_id=99)), codes.NOT_FOUND,
         "UnknownSequence", "99"),
        (lambda: close(sequence_pb2.CloseSequenceRequest(sequence_id=opened)),
         codes.FAILED_PRECONDITION, "StaleHandle", "generation"),
    ]  # fmt: skip
    for call, code, name, message in cases:
        found, details, metadata = status_of(call)
        assert (found, metadata["hisparse-error"]) == (code, name)
        assert message in details
    sequences.OpenSequence(kind(prompt_tokens=64 * 64))


def test_unset_and_unknown_enumerators_are_refused(
    session: RemoteSession, channel: grpc.Channel
) -> None:
    client = session.client._metadata
    steps = step_pb2_grpc.StepServiceStub(channel)
    sequences = sequence_pb2_grpc.SequenceServiceStub(channel)
    row = step_pb2.SequenceRows(sequence_id=session.open(1, 0), num_rows=1)
    selection = sequence_pb2.OpenSequenceRequest(prompt_tokens=1)
    selection.selection.num_kept_blocks = 9
    begin, decode = step_pb2.BeginStepRequest, step_pb2.STEP_KIND_DECODE
    requests = {
        "kind is number 0, needs one of [1, 2]": begin(rows=[row]),
        "kind is number 7, needs one of [1, 2]": begin(rows=[row], kind=7),  # type: ignore[arg-type]
        "4097 sequences in a step, at most 4096": begin(rows=[row] * 4097, kind=decode),
        "outcome is number 0, needs one of [1, 2]": step_pb2.EndStepRequest(step_id=1),
        "index_source is number 0, needs one of [1, 2, 3, 4, 5]": selection,
    }
    calls = {
        begin: steps.BeginStep,
        step_pb2.EndStepRequest: steps.EndStep,
        sequence_pb2.OpenSequenceRequest: sequences.OpenSequence,
    }
    for message, request in requests.items():
        call = calls[type(request)]
        code, details, _ = status_of(lambda: call(request, metadata=client))  # noqa: B023
        assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, message)


def test_messages_and_metadata_over_the_limit_are_refused(channel: grpc.Channel) -> None:
    steps = step_pb2_grpc.StepServiceStub(channel)
    rows = [step_pb2.SequenceRows(sequence_id=1, num_rows=1)] * 1_000_000
    code, details, _ = status_of(lambda: steps.BeginStep(step_pb2.BeginStepRequest(rows=rows)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "vs. 4194304" in details
    stats = sidecar_pb2_grpc.SidecarServiceStub(channel).GetStats
    request = sidecar_pb2.GetStatsRequest()
    much = (("x-much", "x" * 40_000),)
    assert status_of(lambda: stats(request, metadata=much))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stats(request).core.opened == 0


def test_random_bytes_are_no_message_and_the_server_goes_on(channel: grpc.Channel) -> None:
    begin = channel.unary_unary("/hisparse.v1.StepService/BeginStep")
    for bytes_sent in (b"\xff" * 100, b"\x0a\x7f", b"\x08" * 3):
        code, _, _ = status_of(lambda sent=bytes_sent: begin(sent))
        assert code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
    none = channel.unary_unary("/hisparse.v1.StepService/NoSuchCall")
    assert status_of(lambda: none(b""))[0] is grpc.StatusCode.UNIMPLEMENTED
    assert sidecar_pb2_grpc.SidecarServiceStub(channel).GetStats(sidecar_pb2.GetStatsRequest())


def test_a_call_without_a_deadline_ends_at_the_servers(tmp_path: Path) -> None:
    limits = Limits(max_call_seconds=0.3)
    with (
        SidecarServer(small_config(), tmp_path / "s", limits=limits),
        RemoteSession(tmp_path / "s") as session,
        SidecarClient.connect(tmp_path / "s") as other,
    ):
        session.begin_step([(session.open(4, 0), 1)], "prefill")
        sequence = other.open_sequence(1, 0)
        with pytest.raises(HisparseError, match=r"the call took 0\.3 s, the most that it may"):
            other.begin_step([(sequence, 1)], "prefill")
        session.abort_step()
        other.end_step(other.begin_step([(sequence, 1)], "prefill"), commit=False)
