"""HISA (arXiv:2603.28458): pooled keys choose the blocks, then only their tokens are scored."""

from dataclasses import dataclass

import torch

from hisparse_sidecar.selection.contract import (
    IndexKeys,
    KeptBlocks,
    LocatedIndexKeys,
    SelectionQuery,
)


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
        return keys.best_tokens(*self._chosen(query, keys), query.topk)

    def select_rows(self, query: SelectionQuery, keys: LocatedIndexKeys) -> torch.Tensor:
        """`select` as rows of the keys' memory, in the same order."""
        return keys.best_rows(*self._chosen(query, keys), query.topk)

    def _chosen(self, query: SelectionQuery, keys: IndexKeys) -> tuple[SelectionQuery, KeptBlocks]:
        """The query with the heads that score tokens, and the blocks whose tokens they score."""
        kept = min(self.num_kept_blocks, keys.num_blocks)
        routed = query
        if self.routed_heads is not None:
            routed = query.with_heads(keys.routed_heads(query, self.routed_heads))
        blocks = keys.best_blocks(routed if self.routes_blocks else query, kept)
        return routed if self.routes_tokens else query, blocks

    def scored_blocks(self, num_blocks: int) -> int:
        """The kept blocks."""
        return min(self.num_kept_blocks, num_blocks)
