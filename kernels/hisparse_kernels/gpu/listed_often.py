"""Rows that many queries list: dequantised once, and not again for each query."""

import torch

from hisparse_kernels.gpu.kv_rows import unpack_kv_rows_triton
from hisparse_kernels.layouts import KV_LAYOUTS, KvLayout

_OFTEN = 8  # listings of a row, on average: below it, unpacking costs as much as it spares


def is_listed_often(kv_rows: torch.Tensor, row_ids: torch.Tensor) -> bool:
    """Whether it pays to dequantise all rows before any of them is attended to."""
    return row_ids.numel() >= _OFTEN * kv_rows.shape[0]


def dequantised(kv_rows: torch.Tensor, layout: KvLayout) -> tuple[torch.Tensor, KvLayout]:
    """bf16 rows [N, 1152] uint8 of `fp8_ds_mla` rows, with their layout.

    They hold what attention in bf16 makes of a row, bit for bit; rows that hold anything may become
    anything.
    """
    values = kv_rows.new_empty(kv_rows.shape[0], layout.query_dim, dtype=torch.bfloat16)
    unpack_kv_rows_triton(kv_rows, layout, values)
    return values.view(torch.uint8), KV_LAYOUTS["bf16"]
