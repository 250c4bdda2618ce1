"""Pages in a store on other machines: best effort, verified, never waited for too long."""

from hisparse_sidecar.remote.breaker import Breaker, BreakerLimits
from hisparse_sidecar.remote.connect import connect
from hisparse_sidecar.remote.mooncake import MooncakeTier
from hisparse_sidecar.remote.object_store import MooncakeOptions
from hisparse_sidecar.remote.pages import Page, RemoteUsage

__all__ = [
    "Breaker",
    "BreakerLimits",
    "MooncakeOptions",
    "MooncakeTier",
    "Page",
    "RemoteUsage",
    "connect",
]
