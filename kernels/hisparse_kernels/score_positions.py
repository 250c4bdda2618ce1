"""Score a list of tokens of each row with all heads: the re-ranking of MISA-dagger."""

import torch

from hisparse_kernels.index_rows import split_pages
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout
from hisparse_kernels.score_keys import KEY_ALIGN, score_keys
from hisparse_kernels.shapes import Shapes, check_at_least


def score_positions(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_pages: torch.Tensor,
    page_table: torch.Tensor,
    row_seq: torch.Tensor,
    positions: torch.Tensor,
    layout: IndexLayout,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits of the listed tokens; of each the bits that `refine_logits` gives it.

    Args:
        index_q: [rows, heads, 128] fp32, bf16 or e4m3.
        index_weights: [rows, heads] fp32, all scales but the key's folded in.
        index_pages: [num_pages, page_bytes] uint8, contiguous, at least one page.
        page_table: [num_seqs, max_pages] int32, physical page of each page; a negative
            number, and one that is no page of `index_pages`, = not there.
        row_seq: [rows] int32, sequence of each row; -1 = padding row.
        positions: [rows, n] int32, token positions of the row's sequence, in any order; -1 = none.
        layout: how index rows are stored.
        out: [rows, n] fp32, contiguous, to write to and return; None = allocate.

    Returns:
        [rows, n] fp32; -inf for no position, for one in no page, and in padding rows.
    """
    shapes = Shapes(page_bytes=layout.page_bytes)
    shapes.check_index_queries(index_q, index_weights)
    shapes.check_packed("index_pages", index_pages, "num_pages page_bytes", torch.uint8)
    check_at_least("number of index_pages", len(index_pages), 1)
    shapes.check("page_table", page_table, "num_seqs max_pages", torch.int32)
    shapes.check("row_seq", row_seq, "rows", torch.int32)
    shapes.check("positions", positions, "rows n", torch.int32)
    if out is not None:
        shapes.check_packed("out", out, "rows n", torch.float32)
    args = index_q, index_weights, index_pages, page_table, row_seq, positions, layout, out
    if index_q.is_cuda:
        from hisparse_kernels.gpu.score_positions import score_positions_triton

        return score_positions_triton(*args)
    return score_positions_ref(*args)


def score_positions_ref(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_pages: torch.Tensor,
    page_table: torch.Tensor,
    row_seq: torch.Tensor,
    positions: torch.Tensor,
    layout: IndexLayout,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    logits = index_weights.new_full(positions.shape, -torch.inf)
    for row in (row_seq >= 0).nonzero()[:, 0].tolist():
        wanted = positions[row].long()
        page = torch.where(wanted < 0, -1, wanted // PAGE_TOKENS)
        inside = (page >= 0) & (page < page_table.shape[1])
        held = torch.where(inside, page, -1)
        pages = torch.nn.functional.pad(page_table[row_seq[row]], (0, 1), value=-1)[held]
        is_there = (pages >= 0) & (pages < len(index_pages))
        (column,) = is_there.nonzero(as_tuple=True)
        keys, scale = _gather(index_pages, pages[column], wanted[column] % PAGE_TOKENS, layout)
        scores = logits.new_empty(1, keys.shape[0])
        one = slice(row, row + 1)
        score_keys(index_q[one].float(), index_weights[one], keys, scale, scores)
        logits[row, column] = scores[0, : len(column)]
    return logits if out is None else out.copy_(logits)


def _gather(
    index_pages: torch.Tensor, pages: torch.Tensor, within: torch.Tensor, layout: IndexLayout
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Keys of some tokens and their scales, up to a multiple of 64 of them."""
    pad = 0, -len(pages) % KEY_ALIGN
    used, number = torch.unique(pages, return_inverse=True)
    keys, scale = split_pages(index_pages[used.long()], layout)
    token = torch.nn.functional.pad(number * PAGE_TOKENS + within, pad)
    return keys[token], None if scale is None else scale[token]
