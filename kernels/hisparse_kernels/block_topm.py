"""Keep the best blocks of each row, always the first and the newest."""

import torch

from hisparse_kernels.shapes import Shapes, check_at_least
from hisparse_kernels.topk import topk_ref


def block_topm(
    block_logits: torch.Tensor,
    newest_block: torch.Tensor,
    num_kept: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Ids of the `num_kept` best blocks; block 0 and the newest are kept whatever they score.

    Args:
        block_logits: [rows, num_blocks] fp32, pooled scores; only ids <= newest_block are looked
            at, and the score of the newest (open) block is never needed.
        newest_block: [rows] int32, block that holds the row's own token; -1 = padding row.
        num_kept: blocks per row, at least 2; the forced ones count.
        out: [rows, num_kept] int32, contiguous, to write to and return; None = allocate.

    Returns:
        [rows, num_kept] int32, block ids, ascending; -1 pads the tail. All of 0..newest_block
        where they are no more than `num_kept`. Equal scores: the lowest id wins.
    """
    shapes = Shapes(num_kept=num_kept)
    shapes.check("block_logits", block_logits, "rows num_blocks", torch.float32)
    shapes.check("newest_block", newest_block, "rows", torch.int32)
    check_at_least("num_kept", num_kept, 2)
    if out is not None:
        shapes.check_packed("out", out, "rows num_kept", torch.int32)
    if block_logits.is_cuda:
        from hisparse_kernels.gpu.block_topm import block_topm_triton

        return block_topm_triton(block_logits, newest_block, num_kept, out)
    return block_topm_ref(block_logits, newest_block, num_kept, out)


def block_topm_ref(
    block_logits: torch.Tensor,
    newest_block: torch.Tensor,
    num_kept: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    block = torch.arange(block_logits.shape[1], device=block_logits.device)
    newest = newest_block[:, None]
    # finite, so that a legal block always beats an illegal one and never a forced one
    least = torch.finfo(torch.float32).min
    scores = block_logits.nan_to_num(nan=least, neginf=least, posinf=-least)
    scores.masked_fill_((block == 0) | (block == newest), torch.inf)
    scores.masked_fill_(block > newest, -torch.inf)
    return topk_ref(scores, num_kept, out)
