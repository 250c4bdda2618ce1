"""Choose the top-k tokens of each row's blocks: refine, top-k and positions as one op."""

import torch

from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout
from hisparse_kernels.refine_logits import HostBlocks, check_host, refine_logits_ref
from hisparse_kernels.shapes import (
    Shapes,
    check_at_least,
    check_block_tokens,
)
from hisparse_kernels.topk import candidate_positions_ref, topk_ref


def select_tokens(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_pages: torch.Tensor,
    block_slots: torch.Tensor,
    block_ids: torch.Tensor,
    row_pos: torch.Tensor,
    block_tokens: int,
    k: int,
    layout: IndexLayout,
    logits: torch.Tensor,
    out: torch.Tensor | None = None,
    host: HostBlocks | None = None,
    *,
    as_rows: bool = False,
) -> torch.Tensor:
    """Positions of the k best tokens of each row's blocks, ascending where the blocks are.

    The same, bit for bit, as `refine_logits` into logits of -inf, `topk`, `candidate_positions`.

    Args:
        index_q: [rows, heads, 128] fp32, bf16 or e4m3.
        index_weights: [rows, heads] fp32, all scales but the key's folded in.
        index_pages: [num_slots * pages_per_block, page_bytes] uint8, the window; at least one slot.
        block_slots: [rows, m] int32, slot of each block; -1 = not in the window.
        block_ids: [rows, m] int32, the row's blocks; -1 pads the tail.
        row_pos: [rows] int32, the row's own position; later tokens are not taken. -1 = padding row.
        block_tokens: tokens of one block, a multiple of 64.
        k: tokens per row, at least 1.
        layout: how index rows are stored.
        logits: [rows, m * block_tokens] fp32, contiguous, to work in; holds the refined logits
            afterwards, -inf where there is no token to see; of a row without blocks anything.
        out: [rows, k] int32, contiguous, to write to and return; None = allocate.
        host: where blocks that are not in the window are read from, in place; None = nowhere: no
            token of theirs is taken.
        as_rows: name a token by its row of the window, slot * block_tokens + its place in the
            block, instead of by its position; only without `host`, whose tokens have none.

    Returns:
        [rows, k] int32, token positions, or rows; -1 pads the tail. Equal logits: the lowest
        position wins.
    """
    check_block_tokens(block_tokens, PAGE_TOKENS)
    columns = block_ids.shape[-1] * block_tokens
    shapes = Shapes(page_bytes=layout.page_bytes, k=k, columns=columns)
    shapes.check_index_queries(index_q, index_weights)
    shapes.check_packed("index_pages", index_pages, "num_pages page_bytes", torch.uint8)
    check_at_least("number of index_pages", len(index_pages), block_tokens // PAGE_TOKENS)
    shapes.check("block_slots", block_slots, "rows m", torch.int32)
    shapes.check("block_ids", block_ids, "rows m", torch.int32)
    shapes.check("row_pos", row_pos, "rows", torch.int32)
    shapes.check_packed("logits", logits, "rows columns", torch.float32)
    shapes.check_out(out, "rows k", torch.int32)
    check_at_least("k", k, 1)
    check_host(shapes, host)
    if as_rows and host is not None:
        raise ValueError(f"as_rows is {as_rows} with a host, whose tokens have no rows")
    args = (
        index_q,
        index_weights,
        index_pages,
        block_slots,
        block_ids,
        row_pos,
        block_tokens,
        k,
        layout,
        logits,
        out,
        host,
    )
    if index_q.is_cuda:
        from hisparse_kernels.gpu.select_tokens import select_tokens_triton

        return select_tokens_triton(*args, as_rows=as_rows)
    return select_tokens_ref(*args, as_rows=as_rows)


def select_tokens_ref(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_pages: torch.Tensor,
    block_slots: torch.Tensor,
    block_ids: torch.Tensor,
    row_pos: torch.Tensor,
    block_tokens: int,
    k: int,
    layout: IndexLayout,
    logits: torch.Tensor,
    out: torch.Tensor | None = None,
    host: HostBlocks | None = None,
    *,
    as_rows: bool = False,
) -> torch.Tensor:
    lists = block_slots.masked_fill(block_ids < 0, -1), block_ids, row_pos
    logits.fill_(-torch.inf)
    refine_logits_ref(
        index_q, index_weights, index_pages, *lists, block_tokens, layout, logits, host
    )
    named = block_slots if as_rows else block_ids
    return candidate_positions_ref(topk_ref(logits, k), named, block_tokens, out)
