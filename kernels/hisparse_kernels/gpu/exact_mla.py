"""Sparse attention in full fp32, for fp32 queries or rows: the oracle's precision on a GPU."""

import triton
import triton.language as tl

from hisparse_kernels.gpu.e4m3 import from_e4m3
from hisparse_kernels.gpu.merge_splits import store_results
from hisparse_kernels.gpu.mla_tile import (
    key_range,
    key_rows,
    load_query,
    load_rope,
    load_values,
    softmax_step,
)
from hisparse_kernels.layouts import SCALE_DIM

BLOCK_COLUMNS = 128  # output columns of one program: whole scale groups

_BLOCK_COLUMNS = tl.constexpr(BLOCK_COLUMNS)
_BLOCK_H = tl.constexpr(16)
_BLOCK_K = tl.constexpr(32)
_BLOCK_D = tl.constexpr(64)  # query dimensions of one product
_SCALE_DIM = tl.constexpr(SCALE_DIM)


@triton.jit(do_not_specialize=["most_at", "total_at", "heads", "topk", "split_keys"])
def attend_exactly_kernel(
    query_ptr,
    kv_ptr,
    ids_ptr,
    counts_ptr,
    sink_ptr,
    workspace_ptr,
    most_at,
    total_at,
    out_ptr,
    lse_ptr,
    heads,
    topk,
    split_keys,
    query_row_stride,
    query_head_stride,
    query_dim_stride,
    kv_row_stride,
    scale_log2,
    LAYOUT: tl.constexpr,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
) -> None:
    """One program computes some columns of some heads of one row over one split of its keys.

    Programs of one row differ in their columns: each takes the logits anew, in the same steps, so
    all agree on the maximum and the sum.
    """
    column_blocks: tl.constexpr = LATENT // _BLOCK_COLUMNS
    head_blocks = tl.cdiv(heads, _BLOCK_H)
    first_column = tl.program_id(0) % column_blocks * _BLOCK_COLUMNS
    block = tl.program_id(0) // column_blocks
    row = (block // head_blocks).to(tl.int64)
    split = tl.program_id(1)
    head = block % head_blocks * _BLOCK_H + tl.arange(0, _BLOCK_H)
    head_ptr = query_ptr + row * query_row_stride + head.to(tl.int64) * query_head_stride

    row_ids_ptr = ids_ptr + row * topk
    first, end = key_range(row_ids_ptr, counts_ptr, row, split, topk, split_keys)
    most = tl.full([_BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([_BLOCK_H], tl.float32)
    sums = tl.zeros([_BLOCK_H, _BLOCK_COLUMNS], tl.float32)
    for start in range(first, end, _BLOCK_K):
        row_ptr, valid = key_rows(kv_ptr, row_ids_ptr, start, end, kv_row_stride, _BLOCK_K)
        dots = _dots(head_ptr, head < heads, query_dim_stride, row_ptr, valid, LAYOUT, LATENT, ROPE)
        logits = tl.where(valid[None, :], dots * scale_log2, float("-inf"))
        weights, factor, most, total = softmax_step(logits, most, total)
        latent = _latent(row_ptr, valid, first_column, _BLOCK_COLUMNS, LAYOUT, LATENT)
        sums = tl.dot(weights, latent, sums * factor[:, None], input_precision="ieee")
    store_results(
        sums,
        most,
        total,
        workspace_ptr,
        most_at,
        total_at,
        sink_ptr,
        out_ptr,
        lse_ptr,
        row,
        split,
        head,
        heads,
        first_column + tl.arange(0, _BLOCK_COLUMNS),
        LATENT,
    )


@triton.jit
def _dots(
    head_ptr,
    valid_head,
    dim_stride,
    row_ptr,
    valid,
    LAYOUT: tl.constexpr,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
):
    """Products of queries and keys [heads, keys]; of a key that is not valid, 0."""
    dots = tl.zeros([_BLOCK_H, _BLOCK_K], tl.float32)
    for first in range(0, LATENT, _BLOCK_D):
        query = load_query(head_ptr, valid_head, dim_stride, first, _BLOCK_D).to(tl.float32)
        keys = _latent(row_ptr, valid, first, _BLOCK_D, LAYOUT, LATENT)
        dots = tl.dot(query, tl.trans(keys), dots, input_precision="ieee")
    if ROPE > 0:
        query = load_query(head_ptr, valid_head, dim_stride, LATENT, ROPE).to(tl.float32)
        keys = load_rope(row_ptr, valid, LAYOUT, LATENT, ROPE).to(tl.float32)
        dots = tl.dot(query, tl.trans(keys), dots, input_precision="ieee")
    return dots


@triton.jit
def _latent(
    row_ptr, valid, first, COLUMNS: tl.constexpr, LAYOUT: tl.constexpr, LATENT: tl.constexpr
):
    """fp32 latent columns [first, first + COLUMNS) of one scale group; 0 if not valid."""
    if LAYOUT == "fp8":
        column = first + tl.arange(0, COLUMNS)
        codes = tl.load(row_ptr[:, None] + column[None, :], mask=valid[:, None], other=0)
        scale_ptr = (row_ptr + LATENT).to(tl.pointer_type(tl.float32)) + first // _SCALE_DIM
        scale = tl.load(scale_ptr, mask=valid, other=0.0)
        latent = from_e4m3(codes) * scale[:, None]
    elif LAYOUT == "bf16":
        latent = load_values(row_ptr, valid, first, COLUMNS, tl.bfloat16).to(tl.float32)
    else:
        latent = load_values(row_ptr, valid, first, COLUMNS, tl.float32)
    return latent
