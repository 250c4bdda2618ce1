"""Inputs of sparse attention, and how near its results must be."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from accuracy import TOLERANCES, assert_near, assert_near_largest
from cases import NAN_BYTE
from hisparse_kernels.kv_rows import pack_kv_rows
from hisparse_kernels.layouts import KvLayout, kv_layout
from hisparse_kernels.sparse_mla import AttentionOptions, sparse_mla_ref

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SCALE = 576**-0.5

# Weights become bf16, each off by up to 2**-9 of itself: where few keys cancel, an output may be
# off by twice the absolute 1e-3 that TOLERANCES[bfloat16] allows.
BF16_SUMS = replace(TOLERANCES[BF16], absolute=2e-3)

Results = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Attention:
    """Inputs of one call, on the CPU. All bytes of the rows that nothing lists are NaN."""

    query: torch.Tensor  # [rows, heads, query_dim]
    pool: torch.Tensor  # [N, row_bytes] uint8; row 0 is not listed
    row_ids: torch.Tensor  # [rows, topk] int32
    layout: KvLayout

    def on(self, device: str) -> tuple[Any, ...]:
        """Positional arguments of the op."""
        tensors = (t.to(device) for t in (self.query, self.pool, self.row_ids))
        return *tensors, self.layout, SCALE

    def expected(self, **options: Any) -> Results:
        """Results of the reference for an fp32 query of the same values: not rounded."""
        return sparse_mla_ref(
            self.query.float(),
            self.pool,
            self.row_ids,
            self.layout,
            SCALE,
            AttentionOptions(**options),
        )


def attention(
    rows: int,
    heads: int,
    topk: int,
    *,
    layout: str = "fp8_ds_mla",
    dtype: torch.dtype = BF16,
    share_none: float = 0.2,
    seed: int = 0,
) -> Attention:
    torch.manual_seed(seed)
    stored = kv_layout(layout)
    num_keys = topk + topk // 4
    listed = 1 + torch.randperm(2 * num_keys)[:num_keys]
    pool = torch.full((2 * num_keys + 1, stored.row_bytes), NAN_BYTE).byte()
    pool[listed] = pack_kv_rows(torch.randn(num_keys, stored.query_dim), stored)
    ids = listed[torch.rand(rows, num_keys).argsort(1)[:, :topk]].int()
    ids.masked_fill_(torch.rand(rows, topk) < share_none, -1)
    query = torch.randn(rows, heads, stored.query_dim).to(dtype)
    return Attention(query, pool, ids, stored)


def assert_matches(
    actual: Results, expected: Results, layout: KvLayout, *, largest_logit: float = 1.0
) -> None:
    """By the measures of the products' dtype, outputs in units of the largest: they cancel.

    A logit of some size is rounded by a share of it, and its weight is off by as much.
    """
    out, lse = (result.cpu() for result in actual)
    in_fp32 = out.dtype == F32 or layout.name == "fp32"
    limit = TOLERANCES[out.dtype] if in_fp32 else BF16_SUMS
    limit = replace(limit, absolute=max(limit.absolute, largest_logit * 2.0**-22))
    assert_near_largest(out.float(), expected[0], limit)
    # as operands all values keep their bits, but for those of fp16 queries, which become bf16
    assert_near(lse, expected[1], TOLERANCES[BF16 if out.dtype == F16 and not in_fp32 else F32])
