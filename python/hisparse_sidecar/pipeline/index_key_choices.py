"""What of `selection.IndexKeys` is the same wherever index keys lie: choices among scores."""

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.index_logits import SlotPages
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout
from hisparse_kernels.pooled_rows import PooledTable, pooled_pages_of
from hisparse_kernels.select_blocks import COUNTED_ROWS, BlockScratch
from hisparse_kernels.window_slots import WindowSlots
from hisparse_sidecar.selection.contract import KeptBlocks, SelectionQuery


class IndexKeyChoices:
    """Pooled keys of the sequences of a call, and choices among scores.

    Attributes:
        block_tokens: tokens of one block.
    """

    def __init__(
        self,
        ops: Ops,
        layout: IndexLayout,
        block_tokens: int,
        pooled_pages: torch.Tensor,
        pooled_table: PooledTable,
    ) -> None:
        self._ops, self._layout, self.block_tokens = ops, layout, block_tokens
        self._pooled_pages, self._pooled_table = pooled_pages, pooled_table

    @property
    def pooled_columns(self) -> int:
        """See `selection.IndexKeys`."""
        return pooled_pages_of(self._pooled_table) * PAGE_TOKENS

    def all_positions(self, query: SelectionQuery) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        return self._ops.prefix_positions(query.row_pos, query.topk)

    def more_blocks(self, query: SelectionQuery, blocks: KeptBlocks, kept: int) -> KeptBlocks:
        """See `selection.IndexKeys`."""
        logits, newest = blocks.pooled_logits, query.newest_blocks(self.block_tokens)
        return KeptBlocks(self._ops.block_topm(logits, newest, kept), logits)

    def routed_heads(self, query: SelectionQuery, num_routed: int) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        complete = torch.div(query.ends(), self.block_tokens, rounding_mode="floor")
        pooled = self._pooled(query)
        return self._ops.route_heads(*pooled, complete, num_routed, layout=self._layout)

    def top_columns(self, logits: torch.Tensor, topk: int) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        return self._ops.topk(logits, topk)

    def top_positions(
        self, logits: torch.Tensor, block_ids: torch.Tensor, topk: int
    ) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        columns = self._ops.topk(logits, topk)
        return self._ops.candidate_positions(columns, block_ids, self.block_tokens)

    def needs_more(
        self,
        query: SelectionQuery,
        positions: torch.Tensor,
        blocks: KeptBlocks,
        tail_share: float,
    ) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        newest = query.newest_blocks(self.block_tokens)
        lists = positions, blocks.ids, blocks.pooled_logits, newest
        return self._ops.tail_share(*lists, self.block_tokens, tail_share)[1]

    def _pooled(
        self, query: SelectionQuery
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PooledTable, torch.Tensor]:
        """The query's rows and the pooled keys, as the ops take them."""
        stored = self._pooled_pages, self._pooled_table
        return query.index_q, query.index_weights, *stored, query.row_seq

    def _select_blocks(
        self, query: SelectionQuery, kept: int, arrivals: torch.Tensor, slots: WindowSlots | None
    ) -> KeptBlocks:
        """The best blocks of each row, and their slots where these are to be found.

        Args:
            query: whose rows.
            kept: blocks of a row.
            arrivals: [COUNTED_ROWS] int32 of 0, and 0 again afterwards.
            slots: where they are found; None = they are not looked for.
        """
        rows = query.num_rows
        logits = query.index_weights.new_empty(rows, self.pooled_columns)
        scratch = BlockScratch(logits, arrivals[:rows] if rows < COUNTED_ROWS else None)
        pooled = *self._pooled(query), query.newest_blocks(self.block_tokens)
        ids = self._ops.select_blocks(*pooled, kept, self._layout, scratch, slots=slots)
        return KeptBlocks(ids, logits, None if slots is None else slots.out)

    def _empty_logits(self, query: SelectionQuery, block_ids: torch.Tensor) -> torch.Tensor:
        """[rows, tokens of the listed blocks] fp32, not written yet."""
        columns = block_ids.shape[1] * self.block_tokens
        return query.index_weights.new_empty(query.num_rows, columns)

    def _best_in_pages(
        self,
        query: SelectionQuery,
        pages: torch.Tensor,
        table: torch.Tensor | SlotPages,
        topk: int,
        heads: torch.Tensor | None,
    ) -> torch.Tensor:
        """[rows, topk] int32, the best of all tokens that a row sees, through a table of pages."""
        keys = pages, table, query.row_seq, query.ends()
        queries = query.index_q, query.index_weights
        logits = self._ops.paged_index_logits(*queries, *keys, self._layout, heads=heads)
        return self._ops.topk(logits, topk)

    def _logits_at(
        self,
        query: SelectionQuery,
        pages: torch.Tensor,
        table: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """Logits of `positions`, through a table of pages."""
        lists = pages, table, query.row_seq, positions
        return self._ops.score_positions(query.index_q, query.index_weights, *lists, self._layout)


class ResidentKeyChoices(IndexKeyChoices):
    """The same where every index key is on the device: nothing is ever missing."""

    @property
    def all_resident(self) -> bool:
        """They are."""
        return True

    @property
    def scores_positions(self) -> bool:
        """They can be."""
        return True

    def is_resident(self, row: int) -> bool:
        """It is, if it is a row at all."""
        return row >= 0
