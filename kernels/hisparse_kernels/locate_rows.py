"""Turn positions of tokens into rows of a paged KV cache."""

import torch

from hisparse_kernels.paged_batch import PagedBatch, page_ids, row_spans
from hisparse_kernels.shapes import Shapes, check_at_least


def locate_rows(
    topk_indices: torch.Tensor,
    batch: PagedBatch,
    num_pages: int,
    page_stride: int,
    valid_counts: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Row of each listed position: page id * `page_stride` + place in the page.

    Args:
        topk_indices: [rows, topk] int32, token positions, in any order; -1, anywhere, = nothing.
        batch: whose rows these are, and where the pages of its sequences lie.
        num_pages: pages that exist; rows of any other are not given out.
        page_stride: rows from one page to the next, at least `batch.page_tokens`.
        valid_counts: [rows] int32, only so many leading positions of a row count; None = all.
        out: [rows, topk] int32, contiguous, to write to and return; may be `topk_indices`.

    Returns:
        [rows, topk] int32, each position's row at the position's place in the list; -1 where there
        is none, where the row does not see the position, and in padding rows.
    """
    shapes = Shapes()
    shapes.check("topk_indices", topk_indices, "rows topk", torch.int32)
    batch.check(shapes)
    check_at_least("page_stride", page_stride, batch.page_tokens)
    if num_pages * page_stride > 2**31:
        raise ValueError(f"num_pages * page_stride is {num_pages * page_stride}, needs <= 2**31")
    if valid_counts is not None:
        shapes.check("valid_counts", valid_counts, "rows", torch.int32)
    if out is not None:
        shapes.check_packed("out", out, "rows topk", torch.int32)
    args = topk_indices, batch, num_pages, page_stride, valid_counts, out
    if topk_indices.is_cuda:
        from hisparse_kernels.gpu.locate_rows import locate_rows_triton

        return locate_rows_triton(*args)
    return locate_rows_ref(*args)


def locate_rows_ref(
    topk_indices: torch.Tensor,
    batch: PagedBatch,
    num_pages: int,
    page_stride: int,
    valid_counts: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    seq, seen = row_spans(batch, len(topk_indices))
    is_seen = (topk_indices >= 0) & (topk_indices < seen[:, None])
    if valid_counts is not None:
        rank = torch.arange(topk_indices.shape[1], device=topk_indices.device)
        is_seen &= rank < valid_counts[:, None]
    position = topk_indices.clamp(min=0)
    page = page_ids(batch, seq, position // batch.page_tokens, is_seen)
    is_held = (page >= 0) & (page < num_pages)
    row_id = page * page_stride + position % batch.page_tokens
    found = row_id.masked_fill(~is_held, -1)
    return found if out is None else out.copy_(found)
