"""How much of a row's top-k lies in the blocks that were kept last: a sign of lost recall."""

import torch

from hisparse_kernels.shapes import Shapes, check_at_least


def tail_share(
    positions: torch.Tensor,
    block_ids: torch.Tensor,
    block_logits: torch.Tensor,
    newest_block: torch.Tensor,
    block_tokens: int,
    most_share: float,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of each row's top-k from the worst quarter of its kept blocks, and who needs more.

    Of a row's n kept blocks the worst n // 4 are those with the least scores, ranked as
    `block_topm` ranks them: the first and the newest before all others, of equals the lowest id.

    Args:
        positions: [rows, k] int32, the top-k, in the kept blocks; -1 = none.
        block_ids: [rows, m] int32, kept blocks, ascending; -1 pads the tail.
        block_logits: [rows, num_blocks] fp32, pooled scores that the blocks were kept by.
        newest_block: [rows] int32, block that holds the row's own token; -1 = padding row.
        block_tokens: tokens of one block.
        most_share: fp32, a row whose share is greater needs more blocks.
        out: ([rows] fp32, [rows] bool), contiguous, to write to and return; None = allocate.

    Returns:
        ([rows] fp32, the share, 0 where there is no position; [rows] bool, whether the row needs
        more blocks than it kept and has more: False for padding rows).
    """
    shapes = Shapes()
    shapes.check("positions", positions, "rows k", torch.int32)
    shapes.check("block_ids", block_ids, "rows m", torch.int32)
    shapes.check("block_logits", block_logits, "rows num_blocks", torch.float32)
    shapes.check("newest_block", newest_block, "rows", torch.int32)
    check_at_least("block_tokens", block_tokens, 1)
    if out is not None:
        shapes.check_packed("out[0]", out[0], "rows", torch.float32)
        shapes.check_packed("out[1]", out[1], "rows", torch.bool)
    args = positions, block_ids, block_logits, newest_block, block_tokens, most_share, out
    if positions.is_cuda:
        from hisparse_kernels.gpu.tail_share import tail_share_triton

        return tail_share_triton(*args)
    return tail_share_ref(*args)


def tail_share_ref(
    positions: torch.Tensor,
    block_ids: torch.Tensor,
    block_logits: torch.Tensor,
    newest_block: torch.Tensor,
    block_tokens: int,
    most_share: float,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    rank = rank_kept_blocks(block_ids, block_logits, newest_block)
    num_kept = (block_ids >= 0).sum(1)
    worst = (block_ids >= 0) & (rank >= (num_kept - num_kept // 4)[:, None])
    # one more entry, never the worst, for positions that are none
    is_worst = worst.new_zeros(len(worst), block_logits.shape[1] + 1)
    is_worst.scatter_(1, torch.where(worst, block_ids, block_logits.shape[1]).long(), True)
    is_worst[:, -1] = False
    last = block_logits.shape[1]
    blocks = torch.where(positions >= 0, positions // block_tokens, last).long()
    found = is_worst.gather(1, blocks).sum(1).float()
    share = found / (positions >= 0).sum(1).clamp(min=1).float()
    needs_more = (share > torch.tensor(most_share, dtype=torch.float32)) & (
        num_kept <= newest_block
    )
    if out is None:
        return share, needs_more
    return out[0].copy_(share), out[1].copy_(needs_more)


def rank_kept_blocks(
    block_ids: torch.Tensor, block_logits: torch.Tensor, newest_block: torch.Tensor
) -> torch.Tensor:
    """[rows, m] int64, rank of each kept block among its row's, 0 = best; -1s come last."""
    scores = block_logits.gather(1, block_ids.clamp(min=0).long())
    # as in `block_topm`: a legal block beats no block, and never a forced one
    least = torch.finfo(torch.float32).min
    scores = scores.nan_to_num(nan=least, neginf=least, posinf=-least)
    forced = (block_ids == 0) | (block_ids == newest_block[:, None])
    scores = scores.masked_fill(forced, torch.inf).masked_fill(block_ids < 0, -torch.inf)
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return order.argsort(1)
