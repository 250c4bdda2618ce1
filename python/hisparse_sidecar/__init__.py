"""A serving sidecar for DeepSeek Sparse Attention: scores fewer keys, moves only selected rows."""

from hisparse_sidecar.attention import BatchHiSparseMLAPagedAttentionWrapper, MLAPlanMetadata
from hisparse_sidecar.config import ModelShape, SelectionConfig, SidecarConfig, TiersConfig
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.layer_io import LayerInputs, LayerOutputs
from hisparse_sidecar.sidecar import LocalSession, Session, Sidecar

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
