"""HISA with as many blocks as a row turns out to need."""

from dataclasses import dataclass

import torch

from hisparse_sidecar.selection.contract import IndexKeys, SelectionQuery


@dataclass(frozen=True)
class AdaptiveHisaSelector:
    """HISA whose m doubles on the rows that need it: row by row what HISA gives with its last m.

    A row whose top-k comes to more than `tail_share` from the worst-ranked quarter of its blocks
    has probably lost tokens in the blocks after these. Which rows go on is known to the device
    alone: the passes are always the same, and in each the rows that are done are padding, which
    costs next to nothing. A row that goes on has all its blocks scored again: to keep the old
    scores and put the new ones among them took longer.

    Attributes:
        num_kept_blocks: the first m.
        max_blocks: the last one.
        tail_share: above it m is doubled.
    """

    num_kept_blocks: int
    max_blocks: int
    tail_share: float

    def select(self, query: SelectionQuery, keys: IndexKeys) -> torch.Tensor:
        """[rows, topk] int32, token positions, ascending, -1 pads the tail."""
        first, *wider = self.widths(keys.num_blocks)
        blocks = keys.best_blocks(query, first)
        found = selected = keys.best_tokens(query, blocks, query.topk)
        for number, width in enumerate(wider):
            doubled = keys.needs_more(query, found, blocks, self.tail_share)
            for what in ("doubled_rows", "doublings") if number == 0 else ("doublings",):
                keys.count(what, doubled)
            query = query.only(doubled)
            blocks = keys.more_blocks(query, blocks, width)
            found = keys.best_tokens(query, blocks, query.topk)
            selected = torch.where(doubled[:, None], found, selected)
        if (wider or [first])[-1] < keys.num_blocks:
            keys.count("capped_rows", keys.needs_more(query, found, blocks, self.tail_share))
        return selected

    def widths(self, num_blocks: int) -> list[int]:
        """Blocks kept in each pass, where the longest sequence has `num_blocks`."""
        most = min(self.max_blocks, num_blocks)
        found = [min(self.num_kept_blocks, most)]
        while found[-1] < most:
            found.append(min(2 * found[-1], most))
        return found

    def scored_blocks(self, num_blocks: int) -> int:
        """Those of the last pass."""
        return self.widths(num_blocks)[-1]
