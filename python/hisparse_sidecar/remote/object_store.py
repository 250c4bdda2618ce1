"""What the remote tier uses of Mooncake's client, and where the store is."""

import os
import socket
from dataclasses import dataclass, field
from typing import Protocol

from hisparse_sidecar._core import InvalidArgument, TierDown
from hisparse_sidecar.remote.breaker import BreakerLimits

# the client's answers that say something about a page
FULL, WRONG_LENGTH, ABSENT, UNREADABLE = -200, -600, -704, -800
ABOUT_THE_KEY = range(-799, -699)  # not there, not ready, there already, leased

# A call asks the master twice at most, moves bytes once, and may have to connect first. The client
# gives each up after so long, the bytes once none has come for so long; its own bounds are 30 s.
STALL_SECONDS = 2
LONGEST_CALL_SECONDS = 4 * STALL_SECONDS
_STALL_BOUNDS = {
    "MC_RPC_CONNECT_TIMEOUT_MS": 1000 * STALL_SECONDS,
    "MC_RPC_TIMEOUT_MS": 1000 * STALL_SECONDS,
    "MC_TCP_PROGRESS_TIMEOUT_SEC": STALL_SECONDS,
    "MC_TCP_STATUS_TIMEOUT_SEC": STALL_SECONDS,
}
# A call of no known function, as coro_rpc frames one: magic, version, how it is packed, kind, its
# number, the function, two lengths.
_CALL_OF_NOTHING = bytes([21, 0, 0, 0]) + (1).to_bytes(4, "little") + bytes(12)
_ANSWER_SECONDS = 1.0


class ObjectStore(Protocol):
    """What is used of `mooncake.store.MooncakeDistributedStore`; a negative answer is an error."""

    def put_from(self, key: str, buffer_ptr: int, size: int) -> int:
        """Stores registered memory under a key that is new; 0 also where it is not."""
        ...

    def batch_put_from(
        self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]
    ) -> list[int]:
        """The same for several keys."""
        ...

    def batch_put_from_multi_buffers(
        self, keys: list[str], all_buffer_ptrs: list[list[int]], all_sizes: list[list[int]]
    ) -> list[int]:
        """The same for objects of several parts."""
        ...

    def get_into(self, key: str, buffer_ptr: int, size: int) -> int:
        """Copies an object; its length."""
        ...

    def batch_get_into(
        self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]
    ) -> list[int]:
        """The same for several keys."""
        ...

    def is_exist(self, key: str) -> int:
        """1 if the master lists the key."""
        ...

    def batch_is_exist(self, keys: list[str]) -> list[int]:
        """The same for several keys."""
        ...

    def remove(self, key: str, force: bool) -> int:
        """Forgets a key, with `force` even within its lease."""
        ...

    def register_buffer(self, buffer_ptr: int, size: int) -> int:
        """Lets the store copy to and from the memory."""
        ...

    def close(self) -> int:
        """Leaves the store."""
        ...


@dataclass(frozen=True)
class MooncakeOptions:
    """Where the store is, and how much of it a tier uses."""

    master: str  # host:port
    hostname: str = "127.0.0.1"
    metadata_server: str = "P2PHANDSHAKE"
    protocol: str = "tcp"
    rdma_devices: str = ""
    segment_bytes: int = 0  # memory that this process lends to the store; it goes with the process
    staging_bytes: int = 16 << 20  # memory that the store's client sets aside for itself
    max_page_bytes: int = 16 << 20
    num_lanes: int = 4  # calls at a time
    key_prefix: str = "hisparse/"
    breaker: BreakerLimits = field(default_factory=BreakerLimits)


def open_store(options: MooncakeOptions) -> ObjectStore:
    """A client of a running store. Its calls end by `LONGEST_CALL_SECONDS`, unless bytes trickle.

    The client takes these bounds from the process's environment, which is changed for it; a process
    that has used another client before keeps that one's.

    While the client sets itself up it keeps the interpreter's lock: 50 ms with a master that
    answers, and 5 s with one that ends just then. So the master is asked first, and the client is
    given one port to listen at, for it would try 20 of them one after another.

    Raises:
        TierDown: the master does not answer, within a second.
        InvalidArgument: the wheel of the store is not installed, or a library that it needs.
    """
    os.environ.update({name: str(bound) for name, bound in _STALL_BOUNDS.items()})
    try:
        from mooncake.store import MooncakeDistributedStore
    except ImportError as error:
        found = f"Mooncake: found {error}"
        raise InvalidArgument(f"{found}, needed hisparse-sidecar[mooncake], libibverbs1") from error
    check_answers(options.master)
    client = MooncakeDistributedStore()
    code = client.setup(
        _with_port(options.hostname),
        options.metadata_server,
        options.segment_bytes,
        options.staging_bytes,
        options.protocol,
        options.rdma_devices,
        options.master,
    )
    if code != 0:
        raise TierDown(failure(f"setup with {options.master}", code))
    store: ObjectStore = client
    return store


def check_answers(master: str) -> None:
    """Raises TierDown unless something at `master`, host:port, reacts to what it is sent.

    Anything else than host:port is for the client to understand.
    """
    host, _, port = master.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        address = (host.strip("[]"), int(port))
        with socket.create_connection(address, timeout=_ANSWER_SECONDS) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            connection.sendall(_CALL_OF_NOTHING)
            connection.recv(1)  # a refusal, or the end: both are an answer
    except OSError as error:
        raise TierDown(f"remote tier: {master} does not answer: {error}") from error


def _with_port(hostname: str) -> str:
    """A host and a port of it that is free at this moment."""
    if ":" in hostname:
        return hostname
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{hostname}:{probe.getsockname()[1]}"


def failure(call: str, code: int) -> str:
    """The text of a failed call."""
    return f"remote tier: {call} failed: found code {code}, needed 0 or more"
