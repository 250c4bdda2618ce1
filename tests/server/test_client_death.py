"""Clients that are killed, stopped or late, each a process of its own, against a real server."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from hisparse_sidecar import SidecarConfig
from hisparse_sidecar.client import SidecarClient
from hisparse_sidecar.wire.errors import Unauthenticated, UnknownRegion
from hisparse_sidecar.wire.names import CLIENT_KEY
from tests.pipeline.world import small_config
from tests.server.serving import END_SECONDS, ServerProgram, SideClient, channel_to, wait_until

REGION_BYTES = 8192
SLACK_SECONDS = 0.5  # for the machine; the rule itself allows 1.25 limits

# no library of ours: this is all that a client of another language needs
LIVING = """
import socket, sys, time
side = socket.socket(socket.AF_UNIX)
side.connect(sys.argv[1] + ".fd")
words = side.recv(4096).decode().split()
print(words[3], flush=True)
while True:
    time.sleep(float(words[4]) / 3)
    side.sendall(b"ALIVE\\n")
"""


class LivingProcess:
    """A process that is a client and says that it lives; the test makes its calls.

    Attributes:
        sequence: that it owns, beside a region.
    """

    def __init__(self, socket_path: Path, channel: grpc.Channel) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LIVING, socket_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        token = self.process.stdout.readline().strip()
        self.client = SidecarClient(channel, ((CLIENT_KEY, token),))
        self.sequence = self.client.open_sequence(1, 63)
        self.region_id = self.client.create_region(REGION_BYTES).region_id

    def is_connected(self) -> bool:
        try:
            self.client.truncate_sequence(self.sequence, 0)
        except Unauthenticated:
            return False
        return True

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=END_SECONDS)


class Namesake:
    """A client of this process: the server sees the process id that all its other clients have."""

    def __init__(self, socket_path: Path, channel: grpc.Channel) -> None:
        self.side = SideClient(socket_path)
        greeting, _ = self.side.hear()
        self.client_id, self.token = greeting.split()[2:4]
        self.client = SidecarClient(channel, ((CLIENT_KEY, self.token),))
        self.sequence = self.client.open_sequence(1, 63)
        self.region_id = self.client.create_region(REGION_BYTES).region_id


class Crowd:
    """A server and the processes that are its clients."""

    def __init__(self, server: ServerProgram, channel: grpc.Channel, stack: ExitStack) -> None:
        self._server, self._channel, self._stack = server, channel, stack
        self._watcher = SidecarClient(channel)  # connectionless: never ended

    def join(self, count: int) -> list[LivingProcess]:
        joined = []
        for _ in range(count):
            joined.append(LivingProcess(self._server.socket_path, self._channel))
            self._stack.callback(joined[-1].end)
        return joined

    def sequences(self) -> int:
        return self._watcher.stats().core.sequences

    def free_pages(self) -> int:
        return self._watcher.stats().core.host_pages_free

    def regions(self) -> int:
        maps = Path(f"/proc/{self._server.process.pid}/maps").read_text()
        return sum("memfd:hisparse-region" in line for line in maps.splitlines())

    def join_from_here(self) -> "Namesake":
        joined = Namesake(self._server.socket_path, self._channel)
        self._stack.callback(joined.side.socket.close)
        return joined

    def stop_for(self, processes: list[LivingProcess], seconds: float) -> None:
        for living in processes:
            living.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        for living in processes:
            living.process.send_signal(signal.SIGCONT)


@contextmanager
def crowd(
    folder: Path, config: SidecarConfig, limit_seconds: float, most: int = 256
) -> Iterator[Crowd]:
    folder.mkdir()
    flags = ("--max-silent-seconds", str(limit_seconds), "--max-clients", str(most))
    with (
        ServerProgram(folder, config, *flags) as server,
        channel_to(server.socket_path) as channel,
        ExitStack() as stack,
    ):
        yield Crowd(server, channel, stack)


def outlive(crowd: Crowd, count: int, limit_seconds: float) -> None:
    """Half are killed; of the rest a third each is stopped for long, or for short, or lives on."""
    pages = crowd.free_pages()
    clients = crowd.join(count)
    half, sixth = count // 2, count // 6
    killed, stopped = clients[:half], clients[half : half + sixth]
    late, living = clients[half + sixth : half + 2 * sixth], clients[half + 2 * sixth :]
    assert (crowd.sequences(), crowd.regions()) == (count, count)

    for one in killed:
        one.end()
    began = time.monotonic()
    wait_until(lambda: crowd.sequences() == count - half)
    assert time.monotonic() - began < limit_seconds  # not one of them was waited for

    for one in stopped:
        one.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    crowd.stop_for(late, 0.5 * limit_seconds)  # a sign or two are missed
    wait_until(lambda: crowd.sequences() == count - half - sixth)
    assert time.monotonic() - began < 1.25 * limit_seconds + SLACK_SECONDS
    wait_until(lambda: crowd.regions() == count - half - sixth)
    for one in stopped:
        one.process.send_signal(signal.SIGCONT)
    time.sleep(limit_seconds)
    assert not any(one.is_connected() for one in stopped)  # what came back is nobody

    again = crowd.join(half)
    assert not {one.sequence for one in again} & {one.sequence for one in clients}
    assert not {one.region_id for one in again} & {one.region_id for one in clients}
    time.sleep(1.5 * limit_seconds)
    assert all(one.is_connected() for one in [*late, *living, *again])
    for one in [*late, *living, *again]:
        one.end()
    wait_until(lambda: crowd.free_pages() == pages)
    assert (crowd.sequences(), crowd.regions()) == (0, 0)


def test_clients_die_stop_and_come_late_and_only_the_dead_are_ended(tmp_path: Path) -> None:
    config = replace(small_config(), max_sequences=8, host_pages=8)
    with crowd(tmp_path / "run", config, 1.2) as people:
        outlive(people, 8, 1.2)


@pytest.mark.slow
@pytest.mark.full
def test_five_hundred_of_a_thousand_clients_die_and_the_others_keep_all(tmp_path: Path) -> None:
    config = replace(small_config(), max_sequences=1000, host_pages=1000)
    with crowd(tmp_path / "run", config, 3.0, most=1000) as people:
        outlive(people, 1000, 3.0)


def test_a_server_that_was_stopped_itself_keeps_its_clients(tmp_path: Path) -> None:
    with crowd(tmp_path / "run", small_config(), 0.8) as people:
        clients = people.join(4)
        people._server.process.send_signal(signal.SIGSTOP)
        time.sleep(2.0)
        people._server.process.send_signal(signal.SIGCONT)
        time.sleep(0.4)
        assert all(one.is_connected() for one in clients)


def test_a_process_id_that_is_used_again_is_nobody_known(tmp_path: Path) -> None:
    """One client is silent until it is ended, its namesake lives on, and then dies for a third."""
    limit_seconds = 0.8
    with crowd(tmp_path / "run", small_config(), limit_seconds) as people:
        pages = people.free_pages()
        silent, living = people.join_from_here(), people.join_from_here()
        assert (people.sequences(), people.regions()) == (2, 2)
        deadline = time.monotonic() + END_SECONDS
        while people.sequences() == 2:  # a sign of the one is none of the other
            assert time.monotonic() < deadline
            living.side.say(b"ALIVE\n")
            time.sleep(limit_seconds / 8)
        assert silent.side.hear()[0].startswith("ERROR silent for")
        wait_until(lambda: people.regions() == 1)
        with pytest.raises(Unauthenticated):
            silent.client.close_region(silent.region_id)
        living.client.truncate_sequence(living.sequence, 0)
        with pytest.raises(UnknownRegion):
            living.client.close_region(silent.region_id)

        living.side.socket.close()
        wait_until(lambda: people.sequences() == 0)
        third = people.join_from_here()
        assert (people.sequences(), people.regions()) == (1, 1)
        for known in ("client_id", "token", "sequence", "region_id"):
            values = {getattr(one, known) for one in (silent, living, third)}
            assert len(values) == 3, f"{known} was given out again"
        with pytest.raises(UnknownRegion):
            third.client.close_region(living.region_id)
        third.side.socket.close()
        wait_until(lambda: people.free_pages() == pages)
        assert (people.sequences(), people.regions()) == (0, 0)
