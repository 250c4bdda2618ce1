"""The gRPC client: `RemoteSession` for engines, `SidecarClient` below it."""

from hisparse_sidecar.client.remote_session import RemoteSession
from hisparse_sidecar.client.sidecar_client import SidecarClient
from hisparse_sidecar.wire.errors import (
    DeadlineExceeded,
    Draining,
    LimitExceeded,
    NotOwner,
    ServerUnavailable,
    Unauthenticated,
    UnknownRegion,
)

__all__ = [
    "DeadlineExceeded",
    "Draining",
    "LimitExceeded",
    "NotOwner",
    "RemoteSession",
    "ServerUnavailable",
    "SidecarClient",
    "Unauthenticated",
    "UnknownRegion",
]
