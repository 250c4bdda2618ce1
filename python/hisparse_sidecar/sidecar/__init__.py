"""The object that callers hold: sequences and steps over all tiers, and sessions on it."""

from hisparse_sidecar.sidecar.session import LocalSession, Session
from hisparse_sidecar.sidecar.sidecar import Sidecar

__all__ = ["LocalSession", "Session", "Sidecar"]
