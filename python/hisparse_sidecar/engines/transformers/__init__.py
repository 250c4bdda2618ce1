"""Serve DeepSeek-V3.2 and GLM-MoE-DSA models of transformers through a session."""

from hisparse_sidecar.engines.transformers.attach import Attachment, attach
from hisparse_sidecar.engines.transformers.cache import SidecarCache
from hisparse_sidecar.engines.transformers.greedy import (
    GreedyOptions,
    generate,
    greedy,
    next_logits_of,
)
from hisparse_sidecar.engines.transformers.model_shape import model_shape
from hisparse_sidecar.engines.transformers.reference import GivenLayer, ReferenceModel
from hisparse_sidecar.engines.transformers.row_rounding import RowLayouts

__all__ = [
    "Attachment",
    "GivenLayer",
    "GreedyOptions",
    "ReferenceModel",
    "RowLayouts",
    "SidecarCache",
    "attach",
    "generate",
    "greedy",
    "model_shape",
    "next_logits_of",
]
