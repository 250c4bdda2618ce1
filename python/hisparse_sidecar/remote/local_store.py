"""A Mooncake store of own processes, on loopback: for tests, stress and benchmarks."""

import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from hisparse_sidecar._core import DeadlinePassed, InvalidArgument, TierDown

_START_SECONDS = 10.0
_OWNER = """
import sys
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
segment_bytes, master = int(sys.argv[1]), sys.argv[2]
code = store.setup("127.0.0.1", "P2PHANDSHAKE", segment_bytes, 16 << 20, "tcp", "", master)
print(code, flush=True)
sys.stdin.read()
"""


class LocalMaster:
    """One master process; it can be killed and started again at the same address."""

    def __init__(self) -> None:
        self._binary = find_master()
        self._port, self._metrics_port = _free_port(), _free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the process, and returns once it listens.

        Raises:
            TierDown: it ended, or does not listen.
        """
        arguments = [  # its own defaults listen on every address
            "--rpc_address=127.0.0.1",
            f"--rpc_port={self._port}",
            "--metrics_host=127.0.0.1",
            f"--metrics_port={self._metrics_port}",
        ]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen([self._binary, *arguments], stdout=quiet, stderr=quiet)
        deadline = time.monotonic() + _START_SECONDS
        while not _accepts(self._port):
            if self._process.poll() is not None:
                raise TierDown(f"mooncake_master: found exit status {self._process.returncode}")
            if time.monotonic() > deadline:
                self.kill()
                raise DeadlinePassed(f"start of mooncake_master: {_START_SECONDS:.0f} s passed")
            time.sleep(0.02)

    def stop(self) -> None:
        """Takes the CPU away from it: it neither answers nor closes a connection."""
        if self._process is not None:
            _stop(self._process.pid)

    def kill(self) -> None:
        """Ends it with SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class LocalOwner:
    """A process that lends memory to the store, and so has the pages of others."""

    def __init__(self, master: str, segment_bytes: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _OWNER, str(segment_bytes), master],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        found = self._process.stdout.readline().strip() if self._process.stdout else b""
        if found != b"0":
            self.kill()
            raise TierDown(f"owner of {segment_bytes} bytes: found code {found!r}, needed 0")

    def stop(self) -> None:
        """Takes the CPU away from it: it neither answers nor closes a connection."""
        _stop(self._process.pid)

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        self._process.kill()
        self._process.communicate()


def _stop(process_id: int) -> None:
    """Returns once no thread of the process runs any more."""
    os.kill(process_id, signal.SIGSTOP)
    os.waitid(os.P_PID, process_id, os.WSTOPPED | os.WNOWAIT)


def find_master() -> Path:
    """The master's program in the wheel.

    Raises:
        InvalidArgument: the wheel, or a library that it needs, is not installed; says which.
    """
    spec = find_spec("mooncake")
    if spec is None or spec.origin is None:
        raise InvalidArgument("the wheel mooncake-transfer-engine-non-cuda is not installed")
    binary = Path(spec.origin).parent / "mooncake_master"
    linked = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False)
    missing = [line.split()[0] for line in linked.stdout.splitlines() if "not found" in line]
    if missing:
        raise InvalidArgument(f"libraries of mooncake_master are missing: {', '.join(missing)}")
    return binary


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
