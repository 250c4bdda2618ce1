"""KV rows in memory that an engine allocated, with a host pool of ours behind them."""

from hisparse_sidecar.engine_rows.layout import EngineRowsConfig
from hisparse_sidecar.engine_rows.tier import EngineRowTier

__all__ = ["EngineRowTier", "EngineRowsConfig"]
