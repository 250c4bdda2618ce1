"""The side socket: a connection is a client, and it hands out the descriptors of its regions.

The lines are described in region.proto.
"""

import asyncio
import logging
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

from hisparse_sidecar.errors import HisparseError, InvalidArgument
from hisparse_sidecar.server.clients import Client, Region
from hisparse_sidecar.server.gate import Gate
from hisparse_sidecar.wire.errors import NotOwner
from hisparse_sidecar.wire.names import ALIVE, ERROR, FETCH, GREETING, MAX_LINE_BYTES, OK

_LOG = logging.getLogger(__name__)
_BACKLOG = 64
_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid


class SideSocket:
    """Accepts clients on `path`, which must be free; bind it under the umask it is to have."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._listener.setblocking(False)
            self._listener.bind(str(path))
        except BaseException:
            self._listener.close()
            raise
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def start(self, gate: Gate) -> None:
        """Listens; every connection is served by a task of its own."""
        self._listener.listen(_BACKLOG)
        self._accepting = asyncio.ensure_future(self._accept(gate))

    async def stop(self) -> None:
        """Stops listening and ends every client."""
        tasks = [*self._connections, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    async def _accept(self, gate: Gate) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors, say: those we have will end
                _LOG.warning("the side socket cannot accept: %s", error)
                await asyncio.sleep(0.1)
                continue
            task = asyncio.ensure_future(_serve(connection, gate))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)


async def _serve(connection: socket.socket, gate: Gate) -> None:
    with connection:
        connection.setblocking(False)
        try:
            _check_peer(connection)
            gate.refuse_if_draining()
            client = await gate.worker.run(gate.shared.clients.connect, undo=gate.shared.disconnect)
        except HisparseError as error:
            await _send(connection, ERROR, str(error))
            return
        try:
            with gate.liveness.watching(client.token, lambda why: _end(connection, client, why)):
                await _greet(connection, client, gate.liveness.max_silent_seconds)
                await _answer_lines(connection, gate, client)
        except OSError:  # the client went away in the middle of a line
            return
        finally:
            # before the connection closes: who waits for that finds everything freed
            await gate.worker.run(lambda: gate.shared.disconnect(client))


async def _greet(connection: socket.socket, client: Client, max_silent_seconds: float) -> None:
    limit = f"{max_silent_seconds:g}"
    await _send(connection, GREETING, str(client.client_id), client.token, limit)


def _end(connection: socket.socket, client: Client, why: str) -> None:
    _LOG.warning("%s is ended: %s", client, why)
    with suppress(OSError):  # it reads nothing, or has gone by itself
        connection.send(f"{ERROR} {why}\n".encode())
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # its task goes on as if the client had closed


def _check_peer(connection: socket.socket) -> None:
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(found)
    if uid != os.geteuid():
        raise NotOwner(f"the caller is user {uid}, the server is user {os.geteuid()}")


async def _answer_lines(connection: socket.socket, gate: Gate, client: Client) -> None:
    loop = asyncio.get_running_loop()
    pending = b""
    while received := await loop.sock_recv(connection, MAX_LINE_BYTES):
        *lines, pending = (pending + received).split(b"\n")
        if len(pending) > MAX_LINE_BYTES:
            await _send(connection, ERROR, f"a line has over {MAX_LINE_BYTES} bytes")
            return
        for line in lines:
            await _answer(connection, gate, client, line)


async def _answer(connection: socket.socket, gate: Gate, client: Client, line: bytes) -> None:
    verb, _, fetch_token = line.decode("ascii", "replace").partition(" ")
    gate.liveness.heard(client.token)
    if verb == ALIVE:
        return
    try:
        if verb != FETCH:
            needed = f"{FETCH!r} or {ALIVE!r}"
            raise InvalidArgument(f"the line starts with {verb[:16]!r}, needs {needed}")
        with gate.liveness.calling(client.token):
            region = await gate.worker.run(lambda: gate.shared.clients.redeem(client, fetch_token))
        await _send_descriptor(connection, region)
    except HisparseError as error:
        await _send(connection, ERROR, str(error))


async def _send(connection: socket.socket, *words: str) -> None:
    line = " ".join(words) + "\n"
    await asyncio.get_running_loop().sock_sendall(connection, line.encode())


async def _send_descriptor(connection: socket.socket, region: Region) -> None:
    line = f"{OK} {region.memory.num_bytes}\n".encode()
    # a line this short goes at once or, when the client reads nothing, not at all
    sent = socket.send_fds(connection, [line], [region.memory.fd])
    if sent < len(line):
        raise BrokenPipeError(f"sent {sent} of {len(line)} bytes of a line")
