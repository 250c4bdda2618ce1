"""A stream of records between two ranks; no call waits beyond its deadline."""

import os
import select
import socket
import struct
import time
from contextlib import suppress

_LENGTH = struct.Struct("=I")
_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid
_READ_BYTES = 1 << 16
_BUFFER_BYTES = 1 << 20  # decisions that a slow rank may have before it


class Link:
    """Length-prefixed records over a connected socket, which it owns.

    Every call raises ConnectionError once the other side is gone, and TimeoutError where a record
    could not be moved until `until`, a time of `time.monotonic`. After a TimeoutError of `send` the
    stream is cut short: close it.
    """

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._socket, self._received = connected, bytearray()
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(connected, select.POLLIN)
        self._writable.register(connected, select.POLLOUT)

    def fileno(self) -> int:
        """The socket's descriptor, to wait for several links at once."""
        return self._socket.fileno()

    def peer_uid(self) -> int:
        """The user that connected."""
        found = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return int(_UCRED.unpack(found)[1])

    def send(self, body: bytes, until: float) -> None:
        """Sends one record."""
        left = memoryview(_LENGTH.pack(len(body)) + body)
        while left:
            _wait(self._writable, until)
            with suppress(BlockingIOError):  # there was room, but for less than it takes
                left = left[self._socket.send(left) :]

    def send_descriptor(self, body: bytes, descriptor: int) -> None:
        """Sends one short record together with a descriptor, on a stream with room for it."""
        whole = _LENGTH.pack(len(body)) + body
        sent = socket.send_fds(self._socket, [whole], [descriptor])
        if sent < len(whole):
            raise BrokenPipeError(f"sent {sent} of {len(whole)} bytes of a record")

    def receive(self, until: float) -> bytes:
        """Waits for the next record."""
        while (body := self.take()) is None:
            _wait(self._readable, until)
        return body

    def receive_descriptor(self, until: float) -> tuple[bytes, list[int]]:
        """Waits for the first record, and descriptors that came with it: the caller owns them."""
        _wait(self._readable, until)
        received, descriptors, _, _ = socket.recv_fds(self._socket, _READ_BYTES, 1)
        self._received += received
        try:
            if not received:
                raise ConnectionResetError("the other side has closed the stream")
            return self.receive(until), descriptors
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def take(self) -> bytes | None:
        """The next record if it is there; None if it is not."""
        body = self._whole_record()
        if body is not None or not self._read():
            return body
        return self._whole_record()

    def close(self) -> None:
        """Closes the socket; what was sent before stays readable on the other side."""
        self._socket.close()

    def _read(self) -> bool:
        try:
            received = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        if not received:
            raise ConnectionResetError("the other side has closed the stream")
        self._received += received
        return True

    def _whole_record(self) -> bytes | None:
        if len(self._received) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(self._received)[0]
        if len(self._received) < end:
            return None
        body = bytes(self._received[_LENGTH.size : end])
        del self._received[:end]
        return body


def _wait(poll: select.poll, until: float) -> None:
    left = until - time.monotonic()
    if left <= 0 or not poll.poll(left * 1000):
        raise TimeoutError("the deadline has passed")
