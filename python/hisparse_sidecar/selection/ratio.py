"""HISA with a fixed share of each row's blocks, as its paper does for long sequences."""

from dataclasses import dataclass

import torch

from hisparse_kernels.tail_share import rank_kept_blocks
from hisparse_sidecar.selection.contract import IndexKeys, KeptBlocks, SelectionQuery

_ONE_IN = 4
_NO_BLOCK = torch.iinfo(torch.int32).max


@dataclass(frozen=True)
class RatioHisaSelector:
    """HISA with m = max(num_kept_blocks, ceil(blocks / 4)), at most max_blocks, for each row.

    A row's blocks are those up to its own, so rows of one step differ in m; all are kept in one
    call with the greatest m, and each row then lets go of its worst ones.

    Attributes:
        num_kept_blocks: least m.
        max_blocks: greatest m.
    """

    num_kept_blocks: int
    max_blocks: int

    def select(self, query: SelectionQuery, keys: IndexKeys) -> torch.Tensor:
        """[rows, topk] int32, token positions, ascending, -1 pads the tail."""
        blocks = keys.best_blocks(query, self.scored_blocks(keys.num_blocks))
        assert blocks.pooled_logits is not None
        newest = query.newest_blocks(keys.block_tokens)
        of_row = (newest + _ONE_IN) // _ONE_IN  # ceil((newest + 1) / 4)
        of_row = of_row.clamp(self.num_kept_blocks, self.max_blocks)
        kept = KeptBlocks(keep_best(blocks.ids, blocks.pooled_logits, newest, of_row))
        return keys.best_tokens(query, kept, query.topk)

    def scored_blocks(self, num_blocks: int) -> int:
        """The greatest m."""
        most = max(self.num_kept_blocks, -(-num_blocks // _ONE_IN))
        return min(most, self.max_blocks, num_blocks)


def keep_best(
    block_ids: torch.Tensor,
    pooled_logits: torch.Tensor,
    newest: torch.Tensor,
    num_kept: torch.Tensor,
) -> torch.Tensor:
    """The blocks that `block_topm` would have kept with a lesser number for each row.

    Args:
        block_ids: [rows, m] int32, kept blocks, ascending; -1 pads the tail.
        pooled_logits: [rows, num_blocks] fp32, what they were kept by.
        newest: [rows] int32, block that holds the row's own token; -1 = padding row.
        num_kept: [rows] int32, blocks to keep.

    Returns:
        [rows, m] int32, ascending; -1 pads the tail.
    """
    kept = rank_kept_blocks(block_ids, pooled_logits, newest) < num_kept[:, None]
    kept_ids = block_ids.masked_fill(~kept | (block_ids < 0), _NO_BLOCK).sort(dim=1).values
    return kept_ids.masked_fill(kept_ids == _NO_BLOCK, -1)
