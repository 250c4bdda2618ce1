"""The server beside an engine: with and without a sidecar of its own."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hisparse_sidecar._proto.hisparse.v1 import sidecar_pb2, sidecar_pb2_grpc
from hisparse_sidecar.client.sidecar_client import SidecarClient
from hisparse_sidecar.engine_stats import PublishedStats, StatsFolder
from hisparse_sidecar.errors import HisparseError, WrongState
from hisparse_sidecar.server.engine_server import EngineServer
from hisparse_sidecar.server.options import ServerOptions, TcpOptions
from tests.engine_stats.snapshots import make_stats, plain
from tests.pipeline.world import small_config
from tests.server.serving import status_of

TOLD = [
    PublishedStats(make_stats(1), 11, 0.5, is_alive=True),
    PublishedStats(make_stats(500, rank=1), 12, 700.25, is_alive=False),
]
SECONDS = 60.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.sock"


def serve(server: EngineServer, use: Callable[[], object]) -> None:
    """Calls `use` in a thread while the server serves."""

    async def run() -> None:
        await server.start()
        try:
            await asyncio.to_thread(use)
        finally:
            await server.stop()

    asyncio.run(run())


def test_clients_get_what_the_engines_processes_tell(path: Path) -> None:
    def use() -> None:
        client = SidecarClient.connect_unattached(path)
        found = client.server_stats()
        for one, told in zip(found.engines, TOLD, strict=True):
            assert plain(one.stats) == plain(told.stats)
            assert vars(one) | {"stats": None} == vars(told) | {"stats": None}
        assert found.sidecar.core.host_pages_total == 0
        info = client.server_info()
        assert (info.HasField("config"), info.backend) == (False, "")
        assert info.limits.max_regions == 64

    serve(EngineServer(ServerOptions(path), lambda: TOLD), use)
    assert not path.exists()


def test_health_says_when_it_serves(path: Path) -> None:
    request = health_pb2.HealthCheckRequest(service="hisparse.v1.SidecarService")

    def use() -> None:
        stub = health_pb2_grpc.HealthStub(grpc.insecure_channel(f"unix:{path}"))
        assert stub.Check(request).status == health_pb2.HealthCheckResponse.SERVING

    serve(EngineServer(ServerOptions(path), list), use)


def test_other_services_are_not_offered(path: Path) -> None:
    def use() -> None:
        channel = grpc.insecure_channel(f"unix:{path}")
        call = channel.unary_unary("/hisparse.v1.SequenceService/OpenSequence")
        code, _, _ = status_of(lambda: call(b""))
        assert code is grpc.StatusCode.UNIMPLEMENTED

    serve(EngineServer(ServerOptions(path), list), use)


def test_a_socket_of_a_live_server_is_refused(path: Path) -> None:
    def use() -> None:
        with pytest.raises(WrongState, match="a live server listens on"):
            serve(EngineServer(ServerOptions(path), list), lambda: None)

    serve(EngineServer(ServerOptions(path), list), use)


def test_a_snapshot_that_cannot_be_read_is_an_error_of_the_call(path: Path) -> None:
    def read() -> list[PublishedStats]:
        raise HisparseError("7.json is no snapshot")

    def use() -> None:
        client = SidecarClient.connect_unattached(path)
        with pytest.raises(HisparseError, match=r"7\.json is no snapshot"):
            client.server_stats()
        assert client.server_info().version

    serve(EngineServer(ServerOptions(path), read), use)


def test_tcp_needs_the_token(path: Path) -> None:
    token = "0123456789abcdef"
    server = EngineServer(ServerOptions(path, TcpOptions("127.0.0.1:0", token)), lambda: TOLD)

    def use() -> None:
        address = f"127.0.0.1:{server.tcp_port}"
        assert len(SidecarClient.connect_tcp(address, token).server_stats().engines) == 2
        stub = sidecar_pb2_grpc.SidecarServiceStub(grpc.insecure_channel(address))
        code, _, _ = status_of(lambda: stub.GetStats(sidecar_pb2.GetStatsRequest()))
        assert code is grpc.StatusCode.UNAUTHENTICATED

    serve(server, use)


@pytest.fixture
def program(path: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The program that SGLang starts, with a sidecar of its own."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(asdict(small_config())))
    flags = ["--socket", str(path), "--config", str(config)]
    command = [sys.executable, "-m", "hisparse_sidecar.cli.sglang_sidecar", *flags]
    paths = os.pathsep.join(filter(None, sys.path))
    endpoint = {"SGLANG_GRPC_ENDPOINT": f"http://127.0.0.1:{_port()}"}
    environment = {**os.environ, "PYTHONPATH": paths, **endpoint}
    made = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert made.stderr is not None
    assert "serving on" in made.stderr.readline()
    yield made
    made.kill()
    made.communicate()


def _port() -> int:
    return 20000 + os.getpid() % 40000  # it names a folder, and is not bound


def test_a_server_with_a_sidecar_shows_both(program: "subprocess.Popen[str]", path: Path) -> None:
    folder = StatsFolder(f"sglang-{_port()}")
    folder.publish(make_stats(5))
    try:
        with SidecarClient.connect(path) as client:
            found = client.server_stats()
            assert client.server_info().config.host_pages == small_config().host_pages
        assert [one.pid for one in found.engines] == [os.getpid()]
        assert plain(found.engines[0].stats) == plain(make_stats(5))
        assert found.sidecar.core.host_pages_total == small_config().host_pages
    finally:
        folder.withdraw()
    program.terminate()
    assert program.wait(SECONDS) == 0
