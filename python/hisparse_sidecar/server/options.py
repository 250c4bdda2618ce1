"""Where a server listens and how much it lets one client have."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import grpc

from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.wire.names import MAX_MESSAGE_BYTES, side_socket_path

_MAX_PATH_BYTES = 107  # sun_path of a Unix socket, less its final NUL
_MIN_TOKEN_CHARS = 16


@dataclass(frozen=True)
class Limits:
    """Bounds on one client, on one call, and on the end of the server.

    Attributes:
        max_region_bytes: all regions of one client.
        max_regions: regions of one client.
        max_clients: connections to the side socket.
        max_message_bytes: one message, either way.
        max_metadata_bytes: metadata of one call.
        max_concurrent_streams: calls at once on one connection.
        stream_buffer_bytes: what a stream may have sent before the server reads it.
        max_call_seconds: a unary call without a nearer deadline ends here.
        max_unread_seconds: a stream whose responses wait for longer for the client is ended.
        max_step_idle_seconds: an open step without a call is aborted after this.
        max_silent_seconds: a client without a call or a sign of life is ended after this.
        retry_seconds: after which a call that was refused for want of room may try again.
        refusals_per_second: answers to a tenant that goes on asking for more than its share.
        max_refusal_seconds: such an answer waits for its turn no longer than this, nor than half of
            `max_call_seconds`.
        drain_seconds: from the signal to end until calls still running are cancelled.
    """

    max_region_bytes: int = 8 << 30
    max_regions: int = 64
    max_clients: int = 256
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_metadata_bytes: int = 16 << 10
    max_concurrent_streams: int = 256
    stream_buffer_bytes: int = 64 << 10
    max_call_seconds: float = 120.0
    max_unread_seconds: float = 30.0
    max_step_idle_seconds: float = 60.0
    max_silent_seconds: float = 120.0
    retry_seconds: float = 0.25
    refusals_per_second: float = 32.0
    max_refusal_seconds: float = 5.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        ends = ("_seconds", "_per_second")
        for name in (one.name for one in fields(self) if one.name.endswith(ends)):
            found = getattr(self, name)
            if not 0.0 < found < math.inf and (name, found) != ("drain_seconds", 0.0):
                raise InvalidArgument(f"{name} is {found:g}, needs > 0 and finite")
        if self.max_clients < 1:
            raise InvalidArgument(f"max_clients is {self.max_clients}, needs >= 1")

    @property
    def longest_refusal_seconds(self) -> float:
        """That an answer waits, so that it is told before the call is ended."""
        return min(self.max_refusal_seconds, self.max_call_seconds / 2)


@dataclass(frozen=True)
class TcpOptions:
    """A TCP port, which needs a token, or TLS with client certificates, on loopback too.

    Attributes:
        address: "HOST:PORT"; port 0 takes a free one.
        token: what a call must carry as `authorization: Bearer TOKEN`.
        certificate, key: PEM of the server; both or neither.
        client_authority: PEM that must have signed each client's certificate.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    client_authority: bytes | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidArgument("TLS needs a certificate and a key, found one of the two")
        if self.client_authority is not None and self.certificate is None:
            raise InvalidArgument("a client authority needs TLS, found no certificate")
        if self.token is not None and len(self.token) < _MIN_TOKEN_CHARS:
            found = len(self.token)
            raise InvalidArgument(f"token has {found} characters, needs >= {_MIN_TOKEN_CHARS}")
        if self.token is None and self.client_authority is None:
            needed = "a token, or TLS with a client authority"
            raise InvalidArgument(f"TCP address {self.address} has neither: needs {needed}")

    def credentials(self) -> grpc.ServerCredentials | None:
        """TLS, or None for plain TCP behind a token."""
        if self.certificate is None or self.key is None:
            return None
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)],
            root_certificates=self.client_authority,
            require_client_auth=self.client_authority is not None,
        )


@dataclass(frozen=True)
class ServerOptions:
    """What a server listens on, and for whom.

    Attributes:
        socket_path: the Unix socket; there is always one.
        tcp: TCP, only where asked for.
        limits: on one client, on one call, and on the end of the server.
        quota_pages: pages of the host pool that each tenant may have; others are unknown, but
            for "", of whom sequences are that name no tenant, and who has no limit if not named.
    """

    socket_path: Path
    tcp: TcpOptions | None = None
    limits: Limits = field(default_factory=Limits)
    quota_pages: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        longest = side_socket_path(str(self.socket_path.absolute()))
        if len(longest.encode()) > _MAX_PATH_BYTES:
            found = len(longest.encode())
            raise InvalidArgument(f"{longest} has {found} bytes, a socket's path {_MAX_PATH_BYTES}")
        if not self.socket_path.absolute().parent.is_dir():
            raise InvalidArgument(f"{self.socket_path.absolute().parent} is no directory")
