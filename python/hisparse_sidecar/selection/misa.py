"""MISA (arXiv:2605.07363): few heads score every token; dagger re-ranks their best with all."""

from dataclasses import dataclass

import torch

from hisparse_sidecar.selection.contract import IndexKeys, SelectionQuery
from hisparse_sidecar.selection.flat import all_blocks


@dataclass(frozen=True)
class MisaSelector:
    """Top-k by the `routed_heads` heads that weigh most for the row."""

    routed_heads: int

    def select(self, query: SelectionQuery, keys: IndexKeys) -> torch.Tensor:
        """[rows, topk] int32, token positions, ascending, -1 pads the tail."""
        heads = keys.routed_heads(query, self.routed_heads)
        return keys.best_of_all(query, query.topk, heads)

    def scored_blocks(self, num_blocks: int) -> int:
        """All of them, with few heads."""
        return num_blocks


@dataclass(frozen=True)
class MisaDaggerSelector:
    """The routed heads pick `candidates` tokens; all heads choose the top-k among these."""

    routed_heads: int
    candidates: int

    def select(self, query: SelectionQuery, keys: IndexKeys) -> torch.Tensor:
        """[rows, topk] int32, token positions, ascending, -1 pads the tail."""
        heads = keys.routed_heads(query, self.routed_heads)
        candidates = min(self.candidates, keys.num_blocks * keys.block_tokens)
        picked = keys.best_of_all(query, candidates, heads)
        if keys.scores_positions:
            columns = keys.top_columns(keys.position_logits(query, picked), query.topk)
            chosen = picked.gather(1, columns.clamp(min=0).long())
            return chosen.masked_fill(columns < 0, -1)
        # keys that stream by come block by block
        logits = keys.token_logits(query, _blocks_of(picked, keys))
        blocks = all_blocks(query, keys)
        return keys.top_positions(_keep(logits, picked, keys), blocks, query.topk)

    def scored_blocks(self, num_blocks: int) -> int:
        """All of them, with few heads."""
        return num_blocks


def _blocks_of(positions: torch.Tensor, keys: IndexKeys) -> torch.Tensor:
    """[rows, num_blocks] int32: column b is b where the block holds a position, else -1."""
    shape = positions.shape[0], keys.num_blocks + 1
    held = torch.zeros(shape, dtype=torch.bool, device=positions.device)
    blocks = torch.where(positions >= 0, positions // keys.block_tokens, keys.num_blocks)
    held.scatter_(1, blocks.long(), True)
    numbers = torch.arange(keys.num_blocks, dtype=torch.int32, device=positions.device)
    return torch.where(held[:, :-1], numbers, -1)


def _keep(logits: torch.Tensor, positions: torch.Tensor, keys: IndexKeys) -> torch.Tensor:
    """`logits` with every column outside `positions` set to -inf."""
    width = keys.num_blocks * keys.block_tokens
    picked = torch.zeros(logits.shape[0], width + 1, dtype=torch.bool, device=logits.device)
    picked.scatter_(1, torch.where(positions >= 0, positions, width).long(), True)
    return logits.masked_fill(~picked[:, :-1], float("-inf"))
