"""Exact top-k of each row's logits: ascending columns, ties to the lowest column."""

import torch

from hisparse_kernels.shapes import Shapes, check_at_least


def topk(logits: torch.Tensor, k: int, out: torch.Tensor | None = None) -> torch.Tensor:
    """Columns of the k largest logits of each row.

    Args:
        logits: [rows, n] fp32 without NaN; -inf is never taken.
        k: columns per row, at least 1; may pass n.
        out: [rows, k] int32, contiguous, to write to and return; None = allocate.

    Returns:
        [rows, k] int32, columns, ascending; -1 pads the tail. Equal logits: the lowest column wins.
    """
    shapes = Shapes(k=k)
    shapes.check("logits", logits, "rows n", torch.float32)
    check_at_least("k", k, 1)
    if out is not None:
        shapes.check_packed("out", out, "rows k", torch.int32)
    if logits.is_cuda:
        from hisparse_kernels.gpu.topk import topk_triton

        return topk_triton(logits, k, out)
    return topk_ref(logits, k, out)


def topk_ref(logits: torch.Tensor, k: int, out: torch.Tensor | None = None) -> torch.Tensor:
    rows, num_columns = logits.shape
    columns = logits.new_empty((rows, k), dtype=torch.int32) if out is None else out
    columns.fill_(-1)
    if logits.numel() == 0:
        return columns
    best = logits.topk(min(k, num_columns), dim=1, sorted=False).values
    # k-th largest; the clamp keeps -inf out where fewer than k are finite
    bound = best.amin(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
    row, column = (logits >= bound).nonzero(as_tuple=True)
    tied = logits[row, column] == bound[row, 0]
    free = k - (best > bound).sum(1)  # [rows] places left for the tied columns
    kept = ~tied | (_rank_in_row(row, tied, rows) < free[row])
    row, column = row[kept], column[kept]
    rank = _rank_in_row(row, torch.ones_like(row, dtype=torch.bool), rows)
    columns[row, rank] = column.int()
    return columns


def candidate_positions(
    columns: torch.Tensor,
    block_ids: torch.Tensor,
    block_tokens: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Token positions of columns of refined logits; ascending where both inputs ascend.

    Args:
        columns: [rows, k] int32, columns of [rows, m * block_tokens] logits; -1 stays -1.
        block_ids: [rows, m] int32, block of each group of `block_tokens` columns.
        block_tokens: tokens of one block.
        out: [rows, k] int32, contiguous, to write to and return; may be `columns`; None = allocate.

    Returns:
        [rows, k] int32, token positions; -1 where the column is.
    """
    shapes = Shapes()
    shapes.check("columns", columns, "rows k", torch.int32)
    shapes.check("block_ids", block_ids, "rows m", torch.int32)
    check_at_least("block_tokens", block_tokens, 1)
    if out is not None:
        shapes.check_packed("out", out, "rows k", torch.int32)
    if columns.is_cuda:
        from hisparse_kernels.gpu.topk import candidate_positions_triton

        return candidate_positions_triton(columns, block_ids, block_tokens, out)
    return candidate_positions_ref(columns, block_ids, block_tokens, out)


def candidate_positions_ref(
    columns: torch.Tensor,
    block_ids: torch.Tensor,
    block_tokens: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    block = (columns.clamp(min=0) // block_tokens).long()
    positions = block_ids.gather(1, block) * block_tokens + columns % block_tokens
    positions.masked_fill_(columns < 0, -1)
    return positions if out is None else out.copy_(positions)


def _rank_in_row(row: torch.Tensor, counted: torch.Tensor, num_rows: int) -> torch.Tensor:
    """How many counted entries precede each entry within its row; entries are sorted by row."""
    before = counted.cumsum(0) - counted.long()
    counts = torch.bincount(row[counted], minlength=num_rows)
    return before - (counts.cumsum(0) - counts)[row]
