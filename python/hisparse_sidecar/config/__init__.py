"""Everything that can be set: the model, the tiers, the selection; of a sidecar, of a sequence."""

from hisparse_sidecar.config.model import ModelShape
from hisparse_sidecar.config.selection import (
    Budget,
    GateMode,
    IndexSource,
    RoutedStages,
    SelectionConfig,
)
from hisparse_sidecar.config.sidecar import Backend, SidecarConfig, check_split_keys
from hisparse_sidecar.config.tiers import TiersConfig

__all__ = [
    "Backend",
    "Budget",
    "GateMode",
    "IndexSource",
    "ModelShape",
    "RoutedStages",
    "SelectionConfig",
    "SidecarConfig",
    "TiersConfig",
    "check_split_keys",
]
