"""HISA (arXiv:2603.28458): pooled keys choose the blocks, then only their tokens are scored."""

from dataclasses import dataclass

import torch

from hisparse_sidecar.selection.contract import IndexKeys, SelectionQuery


@dataclass(frozen=True)
class HisaSelector:
    """Top-k inside the `num_kept_blocks` best blocks; equal to flat while these hold the prefix.

    Attributes:
        num_kept_blocks: m.
        routed_heads: MISA's h; None = all heads score everything.
        routes_blocks: whether these heads alone score the blocks.
        routes_tokens: whether these heads alone score the tokens.
    """

    num_kept_blocks: int
    routed_heads: int | None = None
    routes_blocks: bool = False
    routes_tokens: bool = False

    def select(self, query: SelectionQuery, keys: IndexKeys) -> torch.Tensor:
        """[rows, topk] int32, token positions, ascending, -1 pads the tail."""
        kept = min(self.num_kept_blocks, keys.num_blocks)
        routed = query
        if self.routed_heads is not None:
            routed = query.with_heads(keys.routed_heads(query, self.routed_heads))
        blocks = keys.best_blocks(routed if self.routes_blocks else query, kept)
        return keys.best_tokens(routed if self.routes_tokens else query, blocks, query.topk)

    def scored_blocks(self, num_blocks: int) -> int:
        """The kept blocks."""
        return min(self.num_kept_blocks, num_blocks)
