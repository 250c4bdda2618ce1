"""How server and client end: what is left of one when the other is killed, and draining."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hisparse_sidecar import LayerInputs
from hisparse_sidecar.client import RemoteSession, SidecarClient
from hisparse_sidecar.server import SidecarServer, main
from hisparse_sidecar.wire.errors import Draining, ServerUnavailable
from hisparse_sidecar.wire.names import CLIENT_KEY
from tests.pipeline.world import random_rows, small_config
from tests.server.serving import (
    END_SECONDS,
    ServerProgram,
    channel_to,
    run_layers,
    run_step,
    wait_until,
)

SOCKETS = {"sidecar.sock", "sidecar.sock.fd"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir()
    return made


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def regions_mapped(process_id: int | str = "self") -> int:
    maps = Path(f"/proc/{process_id}/maps").read_text()
    return sum("memfd:hisparse" in line for line in maps.splitlines())


def regions_open() -> int:
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum("memfd:hisparse" in str(link) for link in links)


def shared_memory_files() -> set[str]:
    """Beside the folder of engines' snapshots, which other tests may have at the same time."""
    names = {path.name for path in Path("/dev/shm").iterdir() if "hisparse" in path.name}
    return names - {f"hisparse-{os.getuid()}"}


def test_a_killed_server_leaves_nothing_and_its_path_works_again(folder: Path) -> None:
    with ServerProgram(folder) as server:
        session = RemoteSession(server.socket_path)
        rows = [(session.open(8, 8), 4)]
        wanted = run_step(session, rows, 1)
        session.begin_step(rows, "prefill")
        session.run_layer(0, _inputs(session))
        server_id = server.process.pid
        assert regions_mapped(server_id) == 2  # the host pool and the client's region
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        for call in (lambda: session.run_layer(1, _inputs(session, 1)), session.stats):
            with pytest.raises(ServerUnavailable):
                call()
        assert names_in(folder) == SOCKETS
        assert not Path(f"/proc/{server_id}/maps").exists()
        with ServerProgram(folder) as again:
            with RemoteSession(again.socket_path) as fresh:
                outputs = run_step(fresh, [(fresh.open(8, 8), 4)], 1)
                assert (outputs[2].out == wanted[2].out).all()
            assert names_in(folder) == SOCKETS
            assert again.end(signal.SIGTERM) == 0
        assert regions_mapped() == 1  # what the client of the dead server still holds
        session.close()
    assert regions_mapped() == 0
    assert names_in(folder) == set()
    assert shared_memory_files() == set()
    assert regions_open() == 0


def _inputs(session: RemoteSession, layer: int = 0) -> LayerInputs:
    return random_rows(session.config, layer, 4, 1)


HOLDER = """
import mmap, socket, sys
side = socket.socket(socket.AF_UNIX)
side.connect(sys.argv[1] + ".fd")
print(side.recv(4096).decode().split()[3], flush=True)
side.sendall(("FETCH " + sys.stdin.readline()).encode())
line, descriptors, _, _ = socket.recv_fds(side, 4096, 1)
memory = mmap.mmap(descriptors[0], int(line.split()[1]))
print("mapped", flush=True)
sys.stdin.read()
"""


def test_a_killed_client_frees_its_step_its_sequences_and_its_region(
    server: SidecarServer,
) -> None:
    with RemoteSession(server.socket_path) as watcher:
        before, mapped = watcher.stats().core, regions_mapped()
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, server.socket_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with holder, channel_to(server.socket_path) as channel:
            assert holder.stdin is not None
            assert holder.stdout is not None
            metadata = ((CLIENT_KEY, holder.stdout.readline().strip()),)
            client = SidecarClient(channel, metadata)
            holder.stdin.write(client.create_region(8192).region_token + "\n")
            holder.stdin.flush()
            assert holder.stdout.readline() == "mapped\n"
            assert regions_mapped(holder.pid) == 1
            client.begin_step([(client.open_sequence(600, 100), 500)], "prefill")
            assert watcher.stats().core.host_pages_free < before.host_pages_free
            assert regions_mapped() == mapped + 1
            holder.kill()
        wait_until(lambda: watcher.stats().core.sequences == 0)
        after = watcher.stats()
        assert after.core.host_pages_free == before.host_pages_free
        assert after.core.slots_used == before.slots_used
        assert after.aborted_steps == 1
        wait_until(lambda: regions_mapped() == mapped)
        run_step(watcher, [(watcher.open(8, 0), 8)], 1)


def test_sigterm_drains_then_exits_with_0_and_leaves_nothing(folder: Path) -> None:
    with ServerProgram(folder) as server, RemoteSession(server.socket_path) as session:
        rows = [(session.open(8, 8), 4)]
        session.begin_step(rows, "prefill")
        session.run_layer(0, _inputs(session))
        with channel_to(server.socket_path) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            server.process.send_signal(signal.SIGTERM)
            not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
            wait_until(lambda: check(health_pb2.HealthCheckRequest()).status == not_serving)
        with pytest.raises(Draining, match="takes 0 new sequences"):
            session.open(1, 1)
        for layer in (1, 2):
            session.run_layer(layer, _inputs(session, layer))
        session.end_step()
        assert server.process.wait(END_SECONDS) == 0
        assert names_in(folder) == set()
        with pytest.raises(ServerUnavailable):
            session.stats()


def test_a_second_sigterm_does_not_wait_for_the_drain(folder: Path) -> None:
    with (
        ServerProgram(folder, None, "--drain-seconds", "3600") as server,
        RemoteSession(server.socket_path) as session,
    ):
        session.begin_step([(session.open(8, 8), 4)], "prefill")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in server.stderr)
        assert server.end(signal.SIGTERM) == 0
        assert names_in(folder) == set()


def test_a_drain_ends_in_bounded_time_though_a_step_is_open(server: SidecarServer) -> None:
    with RemoteSession(server.socket_path) as session:
        session.begin_step([(session.open(8, 8), 4)], "prefill")
        server.stop(0.1)
        assert not server.socket_path.exists()


def test_an_idle_server_drains_with_its_clients_connected(server: SidecarServer) -> None:
    with RemoteSession(server.socket_path) as session:
        run_step(session, [(session.open(8, 0), 8)], 1)  # leaves an idle stream of layers
        server.stop(END_SECONDS)
        with pytest.raises(ServerUnavailable):
            session.open(1, 0)


def test_a_watch_of_health_hears_of_the_end_and_ends(server: SidecarServer) -> None:
    with channel_to(server.socket_path) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        states = health_pb2.HealthCheckResponse
        assert next(watch).status == states.SERVING
        server.stop(END_SECONDS)
        assert [state.status for state in watch] == [states.NOT_SERVING]
        assert watch.code() is grpc.StatusCode.OK


def test_a_step_in_flight_ends_well_when_the_server_stops(server: SidecarServer) -> None:
    with RemoteSession(server.socket_path) as session:
        rows = [(session.open(500, 0), 500)]
        session.begin_step(rows, "prefill")
        outputs = []

        def live() -> None:
            outputs.extend(run_layers(session, rows, 1))
            session.end_step()

        running = threading.Thread(target=live)
        running.start()
        server.stop(END_SECONDS)
        running.join(END_SECONDS)
        assert len(outputs) == 3


def test_the_program_refuses_a_live_socket_and_a_bad_configuration(
    server: SidecarServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    flags = ["--socket", str(server.socket_path), "--config", str(config)]
    config.write_text(json.dumps(asdict(small_config())))
    assert main(flags) == 1
    assert "error: a live server listens on" in capsys.readouterr().err
    assert main([*flags, "--tcp", "127.0.0.1:0"]) == 1
    assert "127.0.0.1:0 has neither: needs a token" in capsys.readouterr().err
    config.write_text("{}")
    assert main(flags) == 1
    assert "key model is missing" in capsys.readouterr().err
    with SidecarClient.connect(server.socket_path) as client:
        client.close_sequence(client.open_sequence(1, 0))
