"""Sparse attention for engines that keep their own paged KV: `plan` once a step, `run` a layer."""

from hisparse_sidecar.attention.metadata import MLAPlanMetadata
from hisparse_sidecar.attention.wrapper import BatchHiSparseMLAPagedAttentionWrapper

__all__ = ["BatchHiSparseMLAPagedAttentionWrapper", "MLAPlanMetadata"]
