"""Sparse attention by its body for sm_100, which is compiled and checked, and has never run.

No backend but `gluon_sm100` calls it. Few heads, fp32 and GPUs without tcgen05 have no such body:
they run as `sparse_mla_triton` runs them.
"""

import torch

from hisparse_kernels.gpu.pipelines import sm100_attention_pipeline_of
from hisparse_kernels.gpu.sparse_mla import attend_rows, bf16_rows_do
from hisparse_kernels.layouts import KV_LAYOUTS, KvLayout
from hisparse_kernels.sparse_mla import NO_OPTIONS, AttentionOptions


def sparse_mla_sm100(
    query: torch.Tensor,
    kv_rows: torch.Tensor,
    row_ids: torch.Tensor,
    layout: KvLayout,
    softmax_scale: float,
    options: AttentionOptions = NO_OPTIONS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `sparse_mla`. Many queries over few fp8 rows have them dequantised once: same bits."""
    inputs = query, kv_rows, row_ids, layout, softmax_scale, options
    may_dequantise = _bf16_rows_do(query, kv_rows, layout)
    return attend_rows(sm100_attention_pipeline_of, may_dequantise, *inputs)


def _bf16_rows_do(query: torch.Tensor, kv_rows: torch.Tensor, layout: KvLayout) -> bool:
    """Whether rows in bf16 would give the bits of these fp8 rows: both or neither by the body."""
    of_codes = sm100_attention_pipeline_of(query, kv_rows, layout)
    of_values = sm100_attention_pipeline_of(query, kv_rows, KV_LAYOUTS["bf16"])
    if of_codes is None and of_values is None:
        return bf16_rows_do(query, layout)
    return layout.name == "fp8_ds_mla" and of_codes is not None and of_values is not None
