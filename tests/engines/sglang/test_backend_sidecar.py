"""SGLang starts our gRPC server with `--sidecar`, which shows what a scheduler tells."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from hisparse_sidecar._proto.hisparse.v1 import sidecar_pb2, sidecar_pb2_grpc
from hisparse_sidecar.cli.sglang_sidecar import engine_port
from hisparse_sidecar.client.sidecar_client import SidecarClient
from hisparse_sidecar.engine_stats import EngineRequests, PublishedStats
from hisparse_sidecar.engines.sglang.offload.stats import folder_of
from hisparse_sidecar.errors import InvalidArgument
from tests.engine_stats.snapshots import kill, plain, start_writer
from tests.engines.sglang.world import server_args

MODULE = "hisparse_sidecar.cli.sglang_sidecar"
PORT = 20000 + os.getpid() % 40000  # nobody binds it here; it names the folder
SECONDS = 60.0


class Scheduler:
    """`publishing_scheduler` in a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.engines.sglang.publishing_scheduler", str(PORT)]
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, text=True)
        self.told = self._read()

    def step(self) -> None:
        """Decodes, and tells."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self.told = self._read()

    def _read(self) -> dict[str, Any]:
        """Its next line of JSON; SGLang writes lines of its own beside."""
        assert self.process.stdout is not None
        while not (line := self.process.stdout.readline()).startswith('{"numbers"'):
            assert line, "the scheduler has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def kill(self) -> None:
        """As if it had crashed."""
        self.process.kill()
        self.process.communicate()


def numbers_of(engine: PublishedStats) -> dict[str, Any]:
    """As a `Scheduler` has told them."""
    stats = engine.stats
    numbers = [stats.steps, stats.rows_asked, stats.rows_missed, stats.bytes_spilled]
    return {"numbers": numbers, "core": plain(stats)["core"]}


@pytest.fixture(autouse=True)
def _leave_nothing() -> Iterator[None]:
    yield
    folder = folder_of(PORT)
    folder.remove_dead()
    folder.remove_if_empty()
    assert not folder.path.exists()


@pytest.fixture
def scheduler(sglang: None) -> Iterator[Scheduler]:
    made = Scheduler()
    yield made
    made.kill()


@pytest.fixture
def start(sglang: None, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """SGLang's own start of its sidecar, of either version."""
    from sglang.srt.entrypoints import sidecar

    started: list[Any] = []

    def start_one(*arguments: str) -> Any:
        flags = ["--attention-backend", "hisparse", "--grpc-port", str(PORT), "--sidecar", MODULE]
        made = server_args(tmp_path, *flags, "--sidecar-args", json.dumps(arguments))
        is_told = sidecar.start_sidecar.__code__.co_argcount  # 0.5.17 is told its arguments
        found = sidecar.start_sidecar(*[made][:is_told])
        started.append(found)
        return found

    yield start_one
    for one in started:
        one.stop()


def connect(path: Path) -> SidecarClient:
    """A client of a server that is about to serve."""
    wait_for(path.exists)
    return SidecarClient.connect_unattached(path)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(0.02)


def test_a_client_reads_what_a_scheduler_tells_until_it_dies(
    start: Callable[..., Any], scheduler: Scheduler
) -> None:
    sidecar = start("--sidecar-shutdown-timeout", "20")
    client = connect(folder_of(PORT).path / "server.sock")
    info = client.server_info()
    assert info.version
    assert not info.HasField("config")
    for steps in (0, 7, 14):
        (found,) = client.server_stats().engines
        assert (found.stats.steps, found.is_alive) == (steps, True)
        assert numbers_of(found) == scheduler.told
        scheduler.step()
    assert found.pid == scheduler.process.pid
    assert found.stats.engine.startswith("sglang 0.5.")
    assert found.stats.requests == EngineRequests(waiting=1, copying=0, decoding=2)
    scheduler.kill()
    (dead,) = client.server_stats().engines
    assert (dead.is_alive, numbers_of(dead)) == (False, scheduler.told)
    assert client.server_stats().engines[0].age_seconds > dead.age_seconds
    later = start_writer(folder_of(PORT).path, 1)
    found = client.server_stats().engines
    assert [(one.pid, one.is_alive) for one in found] == [(dead.pid, False), (later.pid, True)]
    kill(later)
    sidecar.stop()
    assert sidecar.proc.exitcode == 0
    assert not (folder_of(PORT).path / "server.sock").exists()


def test_a_server_that_starts_again_shows_those_that_live(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    path, folder = tmp_path / "s.sock", folder_of(PORT)
    dead, alive = start_writer(folder.path), start_writer(folder.path, 1)
    try:
        first = start("--socket", str(path))
        client = connect(path)
        assert [one.pid for one in client.server_stats().engines] == [dead.pid, alive.pid]
        kill(dead)
        assert [one.is_alive for one in client.server_stats().engines] == [False, True]
        first._watchdog.stop()  # it ends SGLang, as it should
        first.proc.kill()
        first.proc.join()
        assert path.exists()
        second = start("--socket", str(path))
        stub = sidecar_pb2_grpc.SidecarServiceStub(grpc.insecure_channel(f"unix:{path}"))
        message = sidecar_pb2.GetStatsRequest()
        found = stub.GetStats(message, timeout=SECONDS, wait_for_ready=True)
        assert [one.pid for one in found.engines] == [alive.pid]
        second.proc.terminate()
        second.proc.join(SECONDS)
        assert second.proc.exitcode == 0
    finally:
        kill(dead)
        kill(alive)


@pytest.mark.parametrize("endpoint", [None, "", "http://127.0.0.1", "http://127.0.0.1:x"])
def test_an_endpoint_that_names_no_port_is_refused(endpoint: str | None) -> None:
    with pytest.raises(InvalidArgument, match=r"SGLANG_GRPC_ENDPOINT is .* needs http://HOST:PORT"):
        engine_port(endpoint)


def test_a_flag_that_does_not_fit_fails_the_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", MODULE, "--socket", str(tmp_path / "missing" / "s.sock")]
    environment = {"SGLANG_GRPC_ENDPOINT": f"http://[::1]:{PORT}", "PATH": "", **_paths()}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "is no directory" in ended.stderr


def _paths() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(path for path in sys.path if path)}


def test_sigint_ends_it_too(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    command = [sys.executable, "-m", MODULE, "--socket", str(path)]
    environment = {"SGLANG_GRPC_ENDPOINT": f"http://127.0.0.1:{PORT}", "PATH": "", **_paths()}
    process = subprocess.Popen(command, env=environment)
    client = connect(path)
    assert client.server_stats().engines == []
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
