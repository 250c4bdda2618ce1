"""The client's end of the side socket: who we are, and the descriptors of our regions."""

import socket
from pathlib import Path

from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.wire.errors import ServerUnavailable
from hisparse_sidecar.wire.names import ERROR, FETCH, GREETING, MAX_LINE_BYTES, OK, side_socket_path


class SideConnection:
    """Open for as long as the client lives: what it owns ends with this connection.

    Attributes:
        client_id: as the server's messages name this client.
        client_token: what its calls carry.
    """

    def __init__(self, socket_path: Path, timeout_seconds: float) -> None:
        path = side_socket_path(str(socket_path))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout_seconds)
            self._socket.connect(path)
            words = self._receive(GREETING)[0].split(" ")
            self.client_id, self.client_token = int(words[0]), words[1]
        except OSError as error:
            self._socket.close()
            raise ServerUnavailable(f"no server on {path}: {error}") from None
        except BaseException:
            self._socket.close()
            raise

    def fetch(self, region_token: str) -> int:
        """The descriptor of a region of this client; the caller closes it.

        Raises:
            HisparseError: the server refuses.
            ServerUnavailable: it is gone.
        """
        try:
            self._socket.sendall(f"{FETCH} {region_token}\n".encode())
            line, descriptors = self._receive(OK)
        except OSError as error:
            raise ServerUnavailable(f"the side socket failed: {error}") from None
        if len(descriptors) != 1:
            raise HisparseError(f"{line} came with {len(descriptors)} descriptors, needs 1")
        return descriptors[0]

    def close(self) -> None:
        """Ends the client; the server has freed what it owned when this returns."""
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
