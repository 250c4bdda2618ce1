"""The server as the driver has it: started, asked by its probe, killed, started again."""

import json
import multiprocessing
import socket
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hisparse_sidecar.cli.stress.child import LOG, PROBE_SOCKET, SOCKET, serve
from hisparse_sidecar.cli.stress.settings import StressSettings
from hisparse_sidecar.client import RemoteSession, ServerUnavailable
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.wire import errors as wire_errors

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_CALL_SECONDS = 60.0
_POLL_SECONDS = 0.01
_LAST_WORDS = 2000  # characters
_PRELOADED = [
    "hisparse_sidecar.cli.stress.child",
    "hisparse_sidecar.cli.stress.bystander",
]


def process_context() -> multiprocessing.context.ForkServerContext:
    """Makes processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


class ServerProcess:
    """One server after the other, all on the same directory.

    Attributes:
        socket_path: where clients find it.
        generation: servers started before this one.
        is_killed: the present one was killed, or will be at any moment.
    """

    def __init__(self, settings: StressSettings, directory: Path) -> None:
        self._settings = settings
        self._directory = directory
        self._process: BaseProcess | None = None
        self._probe: socket.socket | None = None
        self._answers: Any = None
        self.socket_path = directory / SOCKET
        self.is_killed = False
        self.generation = -1

    @property
    def pid(self) -> int:
        """Of the present server's process."""
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    def start(self) -> None:
        """Starts a server and waits until it answers.

        Raises:
            OSError: it ended, or does not answer in time.
        """
        self.generation += 1
        self.is_killed = False
        (self._directory / PROBE_SOCKET).unlink(missing_ok=True)
        arguments = (self._settings, self._directory, self.generation)
        self._process = process_context().Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._connect_probe():
            if self._process.exitcode is not None or time.monotonic() > deadline:
                raise OSError(f"the server does not start: {self.last_words()}")
            time.sleep(_POLL_SECONDS)

    def _connect_probe(self) -> bool:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        probe.settimeout(_CALL_SECONDS)
        try:
            probe.connect(str(self._directory / PROBE_SOCKET))
        except OSError:
            probe.close()
            return False
        self._probe, self._answers = probe, probe.makefile("rb")
        return True

    def connect(self) -> RemoteSession:
        """A client's session."""
        return RemoteSession(self.socket_path, timeout_seconds=_CALL_SECONDS)

    def ask(self, do: str, **arguments: object) -> Any:  # noqa: ANN401 - each command has its own
        """What the probe answers; see `Probe`.

        Raises:
            HisparseError: the command's own.
            ServerUnavailable: the server is gone.
        """
        assert self._probe is not None
        try:
            self._probe.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
            line = self._answers.readline()
        except OSError as error:
            raise ServerUnavailable(f"probe: {error}") from None
        if not line:
            raise ServerUnavailable("probe: the server is gone")
        answer = json.loads(line)
        if "error" in answer:
            name, message = answer["error"]
            raise _error(name, message)
        return answer["ok"]

    def kill_after(self, seconds: float) -> None:
        """SIGKILL to the present server in so many seconds, whatever it is doing then."""
        assert self._process is not None
        self.is_killed = True
        timer = threading.Timer(seconds, self._process.kill)
        timer.daemon = True
        timer.start()

    def wait_until_dead(self) -> None:
        """Waits for the end of a server that was killed.

        Raises:
            OSError: it lives, or ended otherwise.
        """
        assert self._process is not None
        self._process.join(_STOP_SECONDS)
        self._close_probe()
        if self._process.exitcode != -9:
            found = self._process.exitcode
            raise OSError(f"the server ended with {found}, not by SIGKILL: {self.last_words()}")

    def stop(self) -> int | None:
        """Lets the server drain and end; its exit status, None if it had to be killed."""
        process = self._process
        if process is None:
            return 0
        process.terminate()
        process.join(_STOP_SECONDS)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        self._close_probe()
        self._process = None
        return code

    def _close_probe(self) -> None:
        if self._probe is not None:
            self._answers.close()
            self._probe.close()
        self._probe = None

    def last_words(self) -> str:
        """The end of the servers' log."""
        return self._log()[-_LAST_WORDS:].strip() or "none"

    def panics(self) -> list[str]:
        """Lines of the log that tell of a panic, whoever may have survived it."""
        return [line for line in self._log().splitlines() if "panicked at" in line]

    def _log(self) -> str:
        log = self._directory / LOG
        return log.read_text(errors="replace") if log.exists() else ""


def _error(name: str, message: str) -> Exception:
    kind = getattr(wire_errors, name, HisparseError)
    return kind(message) if issubclass(kind, HisparseError) else HisparseError(message)
