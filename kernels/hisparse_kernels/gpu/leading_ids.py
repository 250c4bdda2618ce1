"""The leading ids of lists: what a kernel that takes no counts is given."""

import torch
import triton
import triton.language as tl

_BLOCK = 1024


def leading_ids_triton(row_ids: torch.Tensor, valid_counts: torch.Tensor) -> torch.Tensor:
    """Lists whose ids behind the counts are -1.

    Args:
        row_ids: int32 [rows, topk], contiguous.
        valid_counts: int32 [rows], contiguous: how many ids of each list hold.

    Returns:
        int32 [rows, topk], new.
    """
    rows, topk = row_ids.shape
    kept = torch.empty_like(row_ids)
    _leading_ids_kernel[rows, triton.cdiv(topk, _BLOCK)](
        row_ids, valid_counts, kept, topk, BLOCK=_BLOCK, enable_fp_fusion=False
    )
    return kept


@triton.jit
def _leading_ids_kernel(ids_ptr, counts_ptr, kept_ptr, topk, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_kept = place < tl.minimum(tl.load(counts_ptr + row), topk)
    ids = tl.load(ids_ptr + row * topk + place, mask=is_kept, other=-1)
    tl.store(kept_ptr + row * topk + place, ids, mask=place < topk)
