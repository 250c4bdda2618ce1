"""Turn positions of tokens into rows of a paged KV cache: each program does a piece of one list."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.paged_batch import batch_arguments, load_page_ids, row_span
from hisparse_kernels.paged_batch import PagedBatch

_BLOCK_SEQS = 256
_MAX_BLOCK_K = 1024


def locate_rows_triton(
    topk_indices: torch.Tensor,
    batch: PagedBatch,
    num_pages: int,
    page_stride: int,
    valid_counts: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `locate_rows`."""
    rows, topk = topk_indices.shape
    if out is None:
        out = topk_indices.new_empty(rows, topk)
    if out.numel() == 0:
        return out
    block_k = min(triton.next_power_of_2(topk), _MAX_BLOCK_K)
    _locate_rows_kernel[rows, triton.cdiv(topk, block_k)](
        *batch_arguments(batch),
        topk_indices.contiguous(),
        None if valid_counts is None else valid_counts.contiguous(),
        topk,
        num_pages,
        page_stride,
        out,
        CAUSAL=batch.causal,
        BLOCK_SEQS=_BLOCK_SEQS,
        BLOCK_K=block_k,
        enable_fp_fusion=False,
    )
    return out


@triton.jit(do_not_specialize=["num_seqs", "num_entries", "width", "num_pages"])
def _locate_rows_kernel(
    qo_indptr_ptr,
    lens_ptr,
    pages_ptr,
    indptr_ptr,
    num_seqs,
    num_entries,
    width,
    page_tokens,
    positions_ptr,
    counts_ptr,
    topk,
    num_pages,
    page_stride,
    out_ptr,
    CAUSAL: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    seq, seen = row_span(qo_indptr_ptr, lens_ptr, num_seqs, row, CAUSAL, BLOCK_SEQS)
    end = topk
    if counts_ptr is not None:
        end = tl.minimum(end, tl.load(counts_ptr + row))
    column = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    place = row.to(tl.int64) * topk + column
    position = tl.load(positions_ptr + place, mask=column < end, other=-1)
    wanted = (position >= 0) & (position < seen)
    position = tl.where(wanted, position, 0)
    page = load_page_ids(
        pages_ptr,
        indptr_ptr,
        num_seqs,
        num_entries,
        width,
        seq,
        position // page_tokens,
        wanted,
    )
    row_id = page * page_stride + position % page_tokens
    held = (page >= 0) & (page < num_pages)
    tl.store(out_ptr + place, tl.where(held, row_id, -1), mask=column < topk)
