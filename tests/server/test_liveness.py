"""Which clients count as alive: the rule by a clock of the test's own, then real connections."""

import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hisparse_sidecar.client import RemoteSession, SidecarClient
from hisparse_sidecar.client.side_connection import SideConnection
from hisparse_sidecar.errors import HisparseError, InvalidArgument
from hisparse_sidecar.server import Limits, SidecarServer
from hisparse_sidecar.server.liveness import Liveness
from hisparse_sidecar.wire.errors import ServerUnavailable, Unauthenticated
from hisparse_sidecar.wire.names import CLIENT_KEY
from tests.pipeline.world import small_config
from tests.server.serving import SideClient, channel_to, wait_until

LIMIT_SECONDS = 0.4


class Clients:
    """Clients by name, a clock, and who was ended when."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ended: dict[str, float] = {}
        self.reasons: list[str] = []
        self.liveness = Liveness(120.0, lambda: self.now)
        self.stack = ExitStack()

    def connect(self, name: str) -> None:
        def end(why: str) -> None:
            assert name not in self.ended
            self.ended[name] = self.now
            self.reasons.append(why)

        self.stack.enter_context(self.liveness.watching(name, end))

    def scan_for(self, seconds: float) -> None:
        for _ in range(int(seconds / self.liveness.scan_seconds)):
            self.now += self.liveness.scan_seconds
            self.liveness.end_silent()


def test_a_silent_client_ends_once_within_a_quarter_more_than_the_limit() -> None:
    clients = Clients()
    clients.connect("silent")
    clients.scan_for(600)
    assert clients.ended == {"silent": 1150.0}
    assert clients.reasons == ["silent for 150 s, at most 120 s"]
    assert clients.liveness.ended == 1


def test_a_sign_of_life_lasts_for_the_limit() -> None:
    clients = Clients()
    clients.connect("a")
    clients.connect("b")
    clients.scan_for(120)
    clients.liveness.heard("a")
    clients.liveness.heard("stranger")
    clients.liveness.heard(None)
    clients.scan_for(120)
    assert list(clients.ended) == ["b"]
    clients.scan_for(30)
    assert list(clients.ended) == ["b", "a"]


def test_a_client_is_not_silent_in_a_call_and_is_heard_when_it_ends() -> None:
    clients = Clients()
    clients.connect("a")
    with clients.liveness.calling("a"), clients.liveness.calling(None):
        clients.scan_for(600)
    clients.scan_for(120)
    assert not clients.ended
    clients.scan_for(30)
    assert list(clients.ended) == ["a"]


def test_time_in_which_the_server_did_not_run_is_not_the_silence_of_its_clients() -> None:
    clients = Clients()
    clients.connect("a")
    clients.scan_for(90)
    clients.now += 3600.0
    clients.liveness.end_silent()
    assert not clients.ended  # its signs lie unread in the socket
    clients.scan_for(30)
    assert list(clients.ended) == ["a"]


def test_a_client_that_has_closed_is_not_ended_again() -> None:
    clients = Clients()
    clients.connect("a")
    clients.stack.close()
    clients.liveness.heard("a")
    clients.scan_for(600)
    assert not clients.ended


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[SidecarServer]:
    limits = Limits(max_silent_seconds=LIMIT_SECONDS)
    with SidecarServer(small_config(), tmp_path / "strict.sock", limits=limits) as server:
        yield server


def test_a_client_of_ours_may_idle_for_any_time(strict: SidecarServer) -> None:
    with RemoteSession(strict.socket_path) as session:
        sequence = session.open(8, 8)
        time.sleep(5 * LIMIT_SECONDS)
        session.truncate(sequence, 0)
        assert session.client.server_info().limits.max_silent_seconds == LIMIT_SECONDS


def test_a_silent_client_is_told_why_and_loses_what_it_owned(strict: SidecarServer) -> None:
    with (
        RemoteSession(strict.socket_path) as watcher,
        SideClient(strict.socket_path) as side,
        channel_to(strict.socket_path) as channel,
    ):
        token = side.hear()[0].split()[3]
        silent = SidecarClient(channel, ((CLIENT_KEY, token),))
        region = silent.create_region(8192)
        silent.begin_step([(silent.open_sequence(600, 100), 500)], "prefill")
        began = time.monotonic()
        assert side.hear()[0].startswith("ERROR silent for 0.")
        assert side.hear()[0] == ""
        assert time.monotonic() - began < 4 * LIMIT_SECONDS
        wait_until(lambda: watcher.stats().core.sequences == 0)
        assert watcher.stats().aborted_steps == 1
        silent.server_info()  # open to every caller
        with pytest.raises(Unauthenticated, match=r"names none of \d+ clients"):
            silent.close_region(region.region_id)


def test_a_client_that_waits_for_its_turn_is_not_silent(strict: SidecarServer) -> None:
    with (
        RemoteSession(strict.socket_path) as stepping,
        SideClient(strict.socket_path) as side,
        channel_to(strict.socket_path) as channel,
    ):
        waiting = SidecarClient(channel, ((CLIENT_KEY, side.hear()[0].split()[3]),))
        sequence = waiting.open_sequence(8, 8)
        stepping.begin_step([(stepping.open(8, 0), 8)], "prefill")
        truncating = threading.Thread(target=waiting.truncate_sequence, args=(sequence, 0))
        truncating.start()
        time.sleep(3 * LIMIT_SECONDS)
        assert truncating.is_alive()
        stepping.abort_step()
        truncating.join()
        waiting.close_sequence(sequence)


def test_a_client_that_nobody_holds_any_more_ends(strict: SidecarServer) -> None:
    with RemoteSession(strict.socket_path) as watcher, channel_to(strict.socket_path) as channel:
        side = SideConnection(strict.socket_path, 10.0)
        client = SidecarClient(channel, ((CLIENT_KEY, side.client_token),))
        client.open_sequence(8, 8)
        assert watcher.stats().core.sequences == 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del side  # its thread must not keep it
        wait_until(lambda: watcher.stats().core.sequences == 0)


def test_what_is_opened_while_its_client_ends_is_freed(strict: SidecarServer) -> None:
    """Registering against ending: whichever comes first, nothing is left."""
    refused = []

    def open_until_refused(client: SidecarClient) -> None:
        try:
            while True:
                client.close_sequence(client.open_sequence(1, 0))
                client.open_sequence(1, 0)
        except HisparseError as error:
            refused.append(error)

    config = small_config()
    with RemoteSession(strict.socket_path) as watcher:
        for _ in range(config.max_sequences):
            client = SidecarClient.connect(strict.socket_path)
            opening = threading.Thread(target=open_until_refused, args=(client,))
            opening.start()
            client._side.close()  # type: ignore[union-attr] # the calls go on
            opening.join()
        assert watcher.stats().core.sequences == 0
        assert watcher.stats().core.host_pages_free == config.host_pages
    assert {type(error) for error in refused} == {Unauthenticated}


def test_a_server_says_its_limit_in_the_greeting_and_takes_signs_without_an_answer(
    strict: SidecarServer,
) -> None:
    with SideClient(strict.socket_path) as side:
        assert side.hear()[0].split()[4] == f"{LIMIT_SECONDS:g}"
        side.say(b"ALIVE\nALIVE\nALIV\n")
        assert side.hear()[0].startswith("ERROR the line starts with 'ALIV', needs 'FETCH' or")


def test_a_client_of_a_server_that_is_gone_ends_its_thread(tmp_path: Path) -> None:
    limits = Limits(max_silent_seconds=LIMIT_SECONDS)
    with SidecarServer(small_config(), tmp_path / "s", limits=limits) as server:
        client = SidecarClient.connect(server.socket_path)
    wait_until(lambda: not any(one.name == "hisparse-alive" for one in threading.enumerate()))
    with pytest.raises(ServerUnavailable):
        client.stats()
    client.close()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_limit_that_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidArgument, match=r"max_silent_seconds is .*, needs > 0 and finite"):
        Limits(max_silent_seconds=seconds)
