"""The indexer's scores of every token, and the exact top-k of them as a mask."""

import torch


def index_scores(
    query: torch.Tensor, weights: torch.Tensor, keys: torch.Tensor, first_position: int
) -> torch.Tensor:
    """`sum_h w[t, h] * relu(q[t, h] . k[s])`, head by head: no [rows, heads, tokens] exists.

    Args:
        query: [rows, heads, dim] fp32.
        weights: [rows, heads] fp32.
        keys: [tokens, dim] fp32.
        first_position: token position of row 0; row i sees positions up to `first_position + i`.

    Returns:
        [rows, tokens] fp32, -inf at positions after the row's own.
    """
    rows, tokens = query.shape[0], keys.shape[0]
    scores = query.new_zeros(rows, tokens)
    dots = query.new_empty(rows, tokens)
    for head in range(query.shape[1]):
        torch.mm(query[:, head], keys.T, out=dots)
        scores.addcmul_(dots.relu_(), weights[:, head, None])
    positions = first_position + torch.arange(rows, device=scores.device)
    later = torch.arange(tokens, device=scores.device) > positions[:, None]
    return scores.masked_fill_(later, -torch.inf)


def exact_topk(scores: torch.Tensor, topk: int) -> torch.Tensor:
    """The `topk` largest finite scores of each row; among equals the lowest column wins.

    Args:
        scores: [rows, tokens] fp32, -inf = never taken.
        topk: columns to take of each row; all finite ones where there are fewer.

    Returns:
        [rows, tokens] bool.
    """
    finite = scores > -torch.inf
    if scores.shape[1] <= topk:
        return finite
    kth = scores.topk(topk, dim=1).values[:, -1:]
    above, ties = scores > kth, (scores == kth) & finite
    missing = topk - above.sum(dim=1, keepdim=True)
    crowded = (ties.sum(dim=1, keepdim=True) > missing).flatten()
    if bool(crowded.any()):
        ties[crowded] &= ties[crowded].cumsum(dim=1) <= missing[crowded]
    return above | ties


def positions_of(mask: torch.Tensor, topk: int) -> torch.Tensor:
    """[rows, topk] int32, columns of a [rows, tokens] bool mask, ascending, -1 pads the tail."""
    rows, columns = mask.nonzero(as_tuple=True)
    counts = mask.sum(dim=1)
    starts = counts.cumsum(0) - counts
    positions = columns.new_full((mask.shape[0], topk), -1, dtype=torch.int32)
    order = torch.arange(rows.numel(), device=rows.device)
    positions[rows, order - starts[rows]] = columns.int()
    return positions
