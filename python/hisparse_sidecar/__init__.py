"""A serving sidecar for DeepSeek Sparse Attention: scores fewer keys, moves only selected rows."""

from hisparse_sidecar.attention import BatchHiSparseMLAPagedAttentionWrapper, MLAPlanMetadata
from hisparse_sidecar.config import ModelShape, SelectionConfig, SidecarConfig
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.layer_io import LayerInputs, LayerOutputs
from hisparse_sidecar.session import LocalSession, Session
from hisparse_sidecar.sidecar import Sidecar
from hisparse_sidecar.tiers_config import TiersConfig

__all__ = [
    "BatchHiSparseMLAPagedAttentionWrapper",
    "HisparseError",
    "LayerInputs",
    "LayerOutputs",
    "LocalSession",
    "MLAPlanMetadata",
    "ModelShape",
    "SelectionConfig",
    "Session",
    "Sidecar",
    "SidecarConfig",
    "TiersConfig",
]
