"""What an engine's offload holds and has done, and how other processes of the host get to know."""

from hisparse_sidecar.engine_stats.published import PublishedStats, StatsFolder
from hisparse_sidecar.engine_stats.stats import EngineRequests, EngineStats, SelectionCalls

__all__ = ["EngineRequests", "EngineStats", "PublishedStats", "SelectionCalls", "StatsFolder"]
