"""Who is connected, and whose regions are which. The worker thread changes it, others read."""

import secrets
from dataclasses import dataclass, field

import torch

from hisparse_sidecar._core import HostRegion
from hisparse_sidecar._proto.hisparse.v1 import tensor_pb2
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.server.options import Limits
from hisparse_sidecar.wire.errors import LimitExceeded, NotOwner, Unauthenticated, UnknownRegion
from hisparse_sidecar.wire.names import CLIENT_KEY
from hisparse_sidecar.wire.tensor_refs import tensor_view

_TOKEN_BYTES = 32


@dataclass
class Region:
    """Memory that a client and the server map.

    Attributes:
        region_id: never used again.
        memory: the sealed memfd.
        bytes: [num_bytes] uint8, all of it.
        fetch_token: what fetches the descriptor; None once it has.
    """

    region_id: int
    memory: HostRegion
    bytes: torch.Tensor
    fetch_token: str | None


@dataclass
class Client:
    """One connection to the side socket and what it owns.

    Attributes:
        client_id: never used again.
        token: what its calls carry.
    """

    client_id: int
    token: str
    regions: dict[int, Region] = field(default_factory=dict)
    sequences: set[int] = field(default_factory=set)

    def __str__(self) -> str:
        return f"client {self.client_id}"


class Clients:
    """All connected clients; ids of clients and regions count from 1."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_token: dict[str, Client] = {}
        self._owner_of_region: dict[int, Client] = {}
        self._clients_seen = self._regions_seen = 0

    def connect(self) -> Client:
        """A new client.

        Raises:
            LimitExceeded: too many are connected.
        """
        found, most = len(self._by_token), self._limits.max_clients
        if found >= most:
            raise LimitExceeded(f"{found} clients are connected, the limit is {most}")
        self._clients_seen += 1
        client = Client(self._clients_seen, secrets.token_urlsafe(_TOKEN_BYTES))
        self._by_token[client.token] = client
        return client

    def disconnect(self, client: Client) -> None:
        """Ends the client's regions and its token; legal when done already."""
        self._by_token.pop(client.token, None)
        for region_id in list(client.regions):
            self.close_region(client, region_id)

    def connected(self) -> list[Client]:
        """Every client, oldest first."""
        return list(self._by_token.values())

    def find(self, token: str | None) -> Client | None:
        """The client of a call; None for a connectionless call.

        Raises:
            Unauthenticated: the token is of no connected client.
        """
        if token is None:
            return None
        if token not in self._by_token:
            raise Unauthenticated(f"{CLIENT_KEY} names none of {len(self._by_token)} clients")
        return self._by_token[token]

    def require(self, token: str | None) -> Client:
        """As `find`, for a call that must come from a client."""
        client = self.find(token)
        if client is None:
            needed = "connect to the side socket first"
            raise Unauthenticated(f"the call has no metadata {CLIENT_KEY}: {needed}")
        return client

    def create_region(self, client: Client, num_bytes: int, huge_pages: bool) -> Region:
        """Maps a new region of the client.

        Raises:
            LimitExceeded: the client has too many regions, or too many bytes.
            InvalidArgument: `num_bytes` is out of range.
            RegionError: the system refuses.
        """
        self._check_limits(client, num_bytes)
        memory = HostRegion(num_bytes, huge_pages=huge_pages, name="hisparse-region")
        self._regions_seen += 1
        region = Region(
            region_id=self._regions_seen,
            memory=memory,
            bytes=torch.frombuffer(memoryview(memory), dtype=torch.uint8),
            fetch_token=secrets.token_urlsafe(_TOKEN_BYTES),
        )
        client.regions[region.region_id] = region
        self._owner_of_region[region.region_id] = client
        return region

    def _check_limits(self, client: Client, num_bytes: int) -> None:
        found, most = len(client.regions), self._limits.max_regions
        if found >= most:
            raise LimitExceeded(f"{client} has {found} regions, the limit is {most}")
        held = sum(region.bytes.numel() for region in client.regions.values())
        if held + num_bytes > self._limits.max_region_bytes:
            asked = f"{client} has {held} bytes in regions and asks for {num_bytes}"
            raise LimitExceeded(f"{asked}, the limit is {self._limits.max_region_bytes}")

    def redeem(self, client: Client, fetch_token: str) -> Region:
        """The client's region of a token, which is worth nothing afterwards.

        Raises:
            UnknownRegion: the token is not of a region of this client, or was used.
        """
        for region in client.regions.values():
            expected = region.fetch_token
            if expected and secrets.compare_digest(expected.encode(), fetch_token.encode()):
                region.fetch_token = None
                return region
        raise UnknownRegion(f"the token fetches none of the {len(client.regions)} regions")

    def close_region(self, client: Client, region_id: int) -> None:
        """Unmaps a region of the client.

        Raises:
            UnknownRegion, NotOwner: it has no such region.
        """
        region = self.region(client, region_id)
        del client.regions[region_id], self._owner_of_region[region_id]
        region.bytes = torch.empty(0, dtype=torch.uint8)
        try:
            region.memory.close()
        except WrongState:
            # a tensor of a step that is ending still looks at it; unmapped when that is dropped
            return

    def region(self, client: Client, region_id: int) -> Region:
        """A region of the client.

        Raises:
            UnknownRegion: nobody has it.
            NotOwner: another client has it.
        """
        owner = self._owner_of_region.get(region_id)
        if owner is None:
            held = sorted(client.regions)
            raise UnknownRegion(f"region {region_id} is not known, {client} has {held}")
        if owner is not client:
            raise NotOwner(f"region {region_id} belongs to {owner}, the caller is {client}")
        return client.regions[region_id]

    def tensor(self, client: Client, name: str, ref: tensor_pb2.TensorRef) -> torch.Tensor:
        """The tensor `name` in a region of the client; see `region` and `byte_range`."""
        return tensor_view(name, ref, self.region(client, ref.region_id).bytes)
