"""The client's end of the side socket: who we are, and the descriptors of our regions."""

import socket
import threading
import weakref
from pathlib import Path

from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.wire.errors import ServerUnavailable
from hisparse_sidecar.wire.names import (
    ALIVE,
    ERROR,
    FETCH,
    GREETING,
    MAX_LINE_BYTES,
    OK,
    side_socket_path,
)

_SIGNS_PER_LIMIT = 3  # two may be lost or late


class SideConnection:
    """Open for as long as the client lives: what it owns ends with this connection.

    Attributes:
        client_id: as the server's messages name this client.
        client_token: what its calls carry.
    """

    def __init__(self, socket_path: Path, timeout_seconds: float) -> None:
        path = side_socket_path(str(socket_path))
        self._sending = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout_seconds)
            self._socket.connect(path)
            words = self._receive(GREETING)[0].split(" ")
            self.client_id, self.client_token = int(words[0]), words[1]
            max_silent_seconds = float(words[2])
        except OSError as error:
            self._socket.close()
            raise ServerUnavailable(f"no server on {path}: {error}") from None
        except BaseException:
            self._socket.close()
            raise
        self._closing = threading.Event()
        say_alive = (weakref.ref(self), self._closing, max_silent_seconds / _SIGNS_PER_LIMIT)
        threading.Thread(
            target=_say_alive, args=say_alive, name="hisparse-alive", daemon=True
        ).start()

    def fetch(self, region_token: str) -> int:
        """The descriptor of a region of this client; the caller closes it.

        Raises:
            HisparseError: the server refuses.
            ServerUnavailable: it is gone.
        """
        try:
            self.say(f"{FETCH} {region_token}")
            line, descriptors = self._receive(OK)
        except OSError as error:
            raise ServerUnavailable(f"the side socket failed: {error}") from None
        if len(descriptors) != 1:
            raise HisparseError(f"{line} came with {len(descriptors)} descriptors, needs 1")
        return descriptors[0]

    def say(self, line: str) -> None:
        """Sends one line, whole."""
        with self._sending:
            self._socket.sendall(f"{line}\n".encode())

    def close(self) -> None:
        """Ends the client; the server has freed what it owned when this returns."""
        self._closing.set()
        try:
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(MAX_LINE_BYTES):
                continue
        except OSError:  # the server is gone, and all it held with it
            return
        finally:
            self._socket.close()

    def _receive(self, expected: str) -> tuple[str, list[int]]:
        """What follows `expected` in the next line, and the descriptors that came with it."""
        received, descriptors = b"", list[int]()
        while not received.endswith(b"\n"):
            part, found, _, _ = socket.recv_fds(self._socket, MAX_LINE_BYTES, 1)
            descriptors += found
            received += part
            if not part:
                raise ConnectionResetError("the server closed the connection")
        line = received.decode("utf-8", "replace").rstrip("\n")
        if line.startswith(ERROR):
            raise HisparseError(line.removeprefix(ERROR).lstrip())
        if not line.startswith(expected + " "):
            raise HisparseError(f"the server sent {line[:40]!r}, expected {expected!r}")
        return line.removeprefix(expected + " "), descriptors


def _say_alive(
    connection: "weakref.ref[SideConnection]", closing: threading.Event, seconds: float
) -> None:
    """Runs in a thread of its own: a client that computes for long, or waits, is alive.

    It must not keep a connection that everybody else has dropped: that one is to close.
    """
    while not closing.wait(seconds):
        open_connection = connection()
        if open_connection is None:
            return
        try:
            open_connection.say(ALIVE)
        except OSError:  # the server is gone or has ended this client: the next call hears it
            return
        del open_connection
