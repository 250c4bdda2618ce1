"""Pooled keys of full pages in Triton: one program a written row; only a page's last one works."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.index_rows import stored_words
from hisparse_kernels.gpu.pool_keys import store_mean, sum_rows
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS, IndexLayout

_DIM = tl.constexpr(INDEX_DIM)
_PAGE_TOKENS = tl.constexpr(PAGE_TOKENS)


def pool_full_pages_triton(
    index_pages: torch.Tensor,
    row_ids: torch.Tensor,
    pooled_pages: torch.Tensor,
    layout: IndexLayout,
) -> None:
    """See `hisparse_kernels.pool_pages.pool_full_pages`."""
    if row_ids.numel():
        _pool_full_pages_kernel[(row_ids.numel(),)](
            index_pages,
            row_ids.contiguous(),
            pooled_pages,
            PAGE_TOKENS,
            layout.name == "fp8",
            num_warps=1,
            enable_fp_fusion=False,
        )


@triton.jit
def _pool_full_pages_kernel(pages_ptr, row_ids_ptr, pooled_ptr, page_tokens, FP8: tl.constexpr):
    row = tl.load(row_ids_ptr + tl.program_id(0)).to(tl.int64)
    if (row >= 0) & (row % _PAGE_TOKENS == _PAGE_TOKENS - 1):
        page = row // _PAGE_TOKENS
        codes_at, scale_at = stored_words(page * _PAGE_TOKENS, FP8)
        row_words: tl.constexpr = _DIM // 4 if FP8 else _DIM
        zeros = tl.zeros([_DIM], tl.float32)
        total = sum_rows(zeros, pages_ptr, codes_at, scale_at, row_words, 1, page_tokens, FP8)
        store_mean(pooled_ptr, page, total, page_tokens, FP8)
