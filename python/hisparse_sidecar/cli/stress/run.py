"""Everything that one run holds, and the ways in which its parts end."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.cli.stress.bystanders import Bystanders
from hisparse_sidecar.cli.stress.counts import Counts
from hisparse_sidecar.cli.stress.lives import Life
from hisparse_sidecar.cli.stress.oracle import Oracle
from hisparse_sidecar.cli.stress.page_names import PageNames
from hisparse_sidecar.cli.stress.sampler import Sampler
from hisparse_sidecar.cli.stress.segments import SegmentReader
from hisparse_sidecar.cli.stress.server_process import ServerProcess
from hisparse_sidecar.cli.stress.settings import StressSettings
from hisparse_sidecar.cli.stress.world import server_config, stored_page_bytes
from hisparse_sidecar.client import RemoteSession
from hisparse_sidecar.tiers.page_secret import page_secret

_MOST_CALL_SECONDS = 15.0


class Run:
    """One server, its clients, and what is known of them.

    Attributes:
        settings: what to run.
        directory: of the server's files and sockets.
        config: of the server.
        counts: what was done and found.
        oracle: what bytes have to be, and what was promised.
        lives: every open sequence, by the number that operations name it by.
        sampler: what was seen of the server over time.
        files: the file tier's directory, read from outside.
        evicts: failpoints make the file tier believe that the disk is full.
        late_until: until then, of the monotonic clock, calls of a slow file tier may come in late.
        pages_left: pages that the present server has given up for want of room, as last seen.
        given_up: of these, the most that may still lie in the files, promised or not.
        may_lose: something was injected that lower tiers may lose pages by.
        bytes_per_token: of a full page.
    """

    def __init__(self, settings: StressSettings, directory: Path) -> None:
        self.settings = settings
        self.directory = directory
        self.config = server_config(settings, directory)
        secret = page_secret(self.config.tiers)
        assert secret is not None, "the configuration names no secret"
        self.counts = Counts()
        self.oracle = Oracle(self.config, PageNames(self.config, secret))
        self.lives: dict[int, Life] = {}
        self.files = SegmentReader(directory / "pages", stored_page_bytes(self.config))
        self.server = ServerProcess(settings, directory)
        self.bystanders = Bystanders(self.server, self.counts)
        self.sampler = Sampler(self.server, self.counts)
        self.evicts = False
        self.pages_left = self.given_up = self.late_until = 0.0
        self.bytes_per_token = stored_page_bytes(self.config) // PAGE_TOKENS
        self.may_lose = "remote" in settings.faults
        self._sessions: dict[int, RemoteSession] = {}
        self._faults_of_the_dead: Counter[str] = Counter()

    def session(self, client: int) -> RemoteSession:
        """The session of a client, which connects when it has none."""
        if client not in self._sessions:
            self._sessions[client] = self.server.connect()
        return self._sessions[client]

    def end_session(self, client: int) -> None:
        """Closes the session of a client; the server frees what it owns."""
        session = self._sessions.pop(client, None)
        if session is not None:
            session.close()
        self.lives = {name: life for name, life in self.lives.items() if life.client != client}

    def end_sessions(self) -> None:
        """Closes all of them, whether the server is there or not."""
        for client in list(self._sessions):
            with contextlib.suppress(Exception):  # the server may be dead: each end finds it out
                self.end_session(client)
        self._sessions.clear()
        self.lives.clear()

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Times a call, which must not hang."""
        began = time.monotonic()
        try:
            with self.counts.timed(name):
                yield
        finally:
            took, most = time.monotonic() - began, _MOST_CALL_SECONDS
            if took > most:
                self.counts.remark(f"{name} took {took:.1f} s, must end within {most} s")

    def note_state(self, *, is_last: bool = False) -> dict[str, Any]:
        """Asks the server what its tiers have counted so far; `is_last`: it is not asked again."""
        state: dict[str, Any] = self.server.ask("state")
        self._note_faults(state["faults"], is_last)
        if "file" in state["tiers"]:
            self._note_files(state["tiers"]["file"])
        return state

    def _note_files(self, files: dict[str, int]) -> None:
        self.given_up += files["left"] - self.pages_left
        self.pages_left = files["left"]
        # a torn page may come back after a kill, and a damaged one is missed, too
        if files["missed"] and not {"kill", "corrupt"} & {*self.settings.faults}:
            self.counts.pages_lost = max(self.counts.pages_lost, files["missed"])
            what = f"{files['missed']} pages are not in the files, and were known to be"
            self.counts.remark(what)

    def _note_faults(self, injected: dict[str, int], is_last: bool) -> None:
        counted = Counter(injected) + self._faults_of_the_dead
        self.counts.faults |= counted
        if is_last:
            self._faults_of_the_dead = counted
