"""Exact top-k of each row's logits: ascending columns, ties to the lowest column."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.overlap import begin_overlapped, overlap_options
from hisparse_kernels.gpu.select import best_columns, pad_columns, row_options
from hisparse_kernels.gpu.topk_tree import grows_a_tree, topk_by_tree

_BLOCK_COLUMNS = 1024
_MANY_ROWS = 64  # so many programs that wait would take the place of those that they wait for


def topk_triton(logits: torch.Tensor, k: int, out: torch.Tensor | None = None) -> torch.Tensor:
    """See `topk`. One program for each row, several for a long one."""
    rows, num_columns = logits.shape
    if out is None:
        out = logits.new_empty((rows, k), dtype=torch.int32)
    if rows and grows_a_tree(num_columns, k):
        topk_by_tree(logits, k, None, None, 1, out)
    elif rows:
        options = row_options(rows, num_columns, k)
        if rows < _MANY_ROWS:
            options |= overlap_options()
        _topk_kernel[(rows,)](logits, *logits.stride(), num_columns, k, out, **options)
    return out


def topk_positions_triton(
    logits: torch.Tensor,
    block_ids: torch.Tensor,
    named: torch.Tensor,
    block_tokens: int,
    k: int,
    out: torch.Tensor,
) -> torch.Tensor:
    """`candidate_positions` of `topk` and `named` in one launch; all inputs are contiguous.

    `named` [rows, m] int32 are the blocks' ids, or what else names them: their slots. Of a row
    whose first id is -1 no logits are read: it has no blocks.
    """
    rows, num_columns = logits.shape
    if rows and grows_a_tree(num_columns, k):
        topk_by_tree(logits, k, block_ids, named, block_tokens, out)
    elif rows:
        _topk_positions_kernel[(rows,)](
            logits,
            num_columns,
            block_ids,
            named,
            block_ids.shape[1],
            k,
            out,
            BLOCK_TOKENS=block_tokens,
            **row_options(rows, num_columns, k),
            **overlap_options(),
        )
    return out


def candidate_positions_triton(
    columns: torch.Tensor,
    block_ids: torch.Tensor,
    block_tokens: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `candidate_positions`."""
    rows, k = columns.shape
    if out is None:
        out = columns.new_empty(rows, k)
    if columns.numel():
        _positions_kernel[rows, triton.cdiv(k, _BLOCK_COLUMNS)](
            columns,
            *columns.stride(),
            block_ids,
            *block_ids.stride(),
            out,
            k,
            block_tokens,
            BLOCK=_BLOCK_COLUMNS,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out


@triton.jit(do_not_specialize=["k"])  # 16-byte loads need the divisor of num_columns
def _topk_kernel(
    logits_ptr,
    row_stride,
    column_stride,
    num_columns,
    k,
    out_ptr,
    BLOCK: tl.constexpr,
    BLOCK_BEST: tl.constexpr,
    WRITE_BLOCK: tl.constexpr,
    WARPS: tl.constexpr,
):
    begin_overlapped()
    row = tl.program_id(0).to(tl.int64)
    best_columns(
        logits_ptr + row * row_stride,
        column_stride,
        num_columns,
        -1,
        k,
        None,
        out_ptr + row * k,
        False,
        1,
        BLOCK,
        BLOCK_BEST,
        WRITE_BLOCK,
        WARPS,
    )


@triton.jit(do_not_specialize=["num_entries", "k"])
def _topk_positions_kernel(
    logits_ptr,
    num_columns,
    ids_ptr,
    named_ptr,
    num_entries,
    k,
    out_ptr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_BEST: tl.constexpr,
    WRITE_BLOCK: tl.constexpr,
    WARPS: tl.constexpr,
):
    begin_overlapped()
    row = tl.program_id(0).to(tl.int64)
    if tl.load(ids_ptr + row * num_entries) < 0:  # no blocks: nobody has written its logits
        pad_columns(0, k, out_ptr + row * k, BLOCK)
    else:
        best_columns(
            logits_ptr + row * num_columns,
            1,
            num_columns,
            -1,
            k,
            named_ptr + row * num_entries,
            out_ptr + row * k,
            False,
            BLOCK_TOKENS,
            BLOCK,
            BLOCK_BEST,
            WRITE_BLOCK,
            WARPS,
        )


@triton.jit
def _positions_kernel(
    columns_ptr,
    columns_row_stride,
    columns_stride,
    ids_ptr,
    ids_row_stride,
    ids_stride,
    out_ptr,
    k,
    block_tokens,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < k
    columns_ptr += row * columns_row_stride
    column = tl.load(columns_ptr + place.to(tl.int64) * columns_stride, mask=inside, other=-1)
    block_of_row = (column // block_tokens).to(tl.int64)
    block_ptr = ids_ptr + row * ids_row_stride + block_of_row * ids_stride
    block = tl.load(block_ptr, mask=column >= 0, other=0)
    position = tl.where(column >= 0, block * block_tokens + column % block_tokens, -1)
    tl.store(out_ptr + row * k + place, position, mask=inside)
