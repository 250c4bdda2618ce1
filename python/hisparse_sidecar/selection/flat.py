"""Flat selection, DSA as it is defined: every token of the prefix is scored."""

import torch

from hisparse_sidecar.selection.contract import IndexKeys, SelectionQuery


class FlatSelector:
    """Top-k over all tokens: HISA that keeps every block."""

    def select(self, query: SelectionQuery, keys: IndexKeys) -> torch.Tensor:
        """[rows, topk] int32, token positions, ascending, -1 pads the tail."""
        return keys.best_of_all(query, query.topk)

    def scored_blocks(self, num_blocks: int) -> int:
        """All of them."""
        return num_blocks


def all_blocks(query: SelectionQuery, keys: IndexKeys) -> torch.Tensor:
    """[rows, num_blocks] int32, every block up to the row's own; -1 pads."""
    blocks = torch.arange(keys.num_blocks, dtype=torch.int32, device=query.row_pos.device)
    newest = query.newest_blocks(keys.block_tokens)[:, None]
    return torch.where(blocks <= newest, blocks, -1)
