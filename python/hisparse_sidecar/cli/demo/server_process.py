"""The sidecar server in a process of its own, on a Unix socket in a temporary folder."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from hisparse_sidecar.client import RemoteSession, ServerUnavailable
from hisparse_sidecar.config import SidecarConfig

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.05


class ServerProcess:
    """`hisparse serve` for one configuration; `connect` to it, and it is gone when left.

    Attributes:
        socket: the Unix socket that it listens on.
    """

    def __init__(self, config: SidecarConfig) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hisparse-")
        folder = Path(self._folder.name)
        self.socket = folder / "sidecar.sock"
        self._log = folder / "server.log"
        config_file = folder / "config.json"
        config_file.write_text(json.dumps(asdict(config)))
        command = [sys.executable, "-m", "hisparse_sidecar.cli", "serve"]
        command += ["--config", str(config_file), "--socket", str(self.socket)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=_environment())

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask the server to end, wait for it, and remove its folder."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def connect(self) -> RemoteSession:
        """A session, as soon as the server answers.

        Raises:
            OSError: the server ended (the message holds what it wrote), or does not answer.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                said = self._log.read_text(errors="replace").strip()
                raise OSError(f"the server ended with code {self._process.returncode}: {said}")
            with contextlib.suppress(ServerUnavailable):
                return RemoteSession(self.socket)
            time.sleep(_POLL_SECONDS)
        raise OSError(f"the server did not answer within {_START_SECONDS:.0f} s")


def _environment() -> dict[str, str]:
    # client and server compute in turn: a thread that spins after its work takes the other's core
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
