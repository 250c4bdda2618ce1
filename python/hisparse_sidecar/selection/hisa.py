"""HISA (arXiv:2603.28458): pooled keys choose the blocks, then only their tokens are scored."""

from dataclasses import dataclass

import torch

from hisparse_sidecar.selection.contract import IndexKeys, SelectionQuery


@dataclass(frozen=True)
class HisaSelector:
    """Top-k inside the `num_kept_blocks` best blocks; equal to flat while these hold the prefix."""

    num_kept_blocks: int

    def select(self, query: SelectionQuery, keys: IndexKeys) -> torch.Tensor:
        """[rows, topk] int32, token positions, ascending, -1 pads the tail."""
        kept = min(self.num_kept_blocks, keys.num_blocks)
        block_ids = keys.top_blocks(keys.pooled_logits(query), query, kept)
        logits = keys.token_logits(query, block_ids)
        return keys.top_positions(logits, block_ids, query.topk)

    def scored_blocks(self, num_blocks: int) -> int:
        """The kept blocks."""
        return min(self.num_kept_blocks, num_blocks)
