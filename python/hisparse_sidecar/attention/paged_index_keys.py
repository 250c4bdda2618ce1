"""Index keys in an engine's own pages, as selectors ask for them."""

from dataclasses import dataclass, replace

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout
from hisparse_kernels.paged_batch import PagedBatch
from hisparse_kernels.pooled_rows import PooledTable
from hisparse_kernels.refine_logits import HostBlocks
from hisparse_kernels.select_blocks import COUNTED_ROWS
from hisparse_kernels.window_slots import WindowSlots
from hisparse_sidecar.pipeline.index_key_choices import ResidentKeyChoices
from hisparse_sidecar.requirements import require
from hisparse_sidecar.selection.contract import KeptBlocks, SelectionQuery


@dataclass(frozen=True)
class PlannedRows:
    """What a plan lays out for selection; made once, written by each plan.

    Attributes:
        row_seq: [max_rows] int32, sequence of each row; -1 = padding row.
        row_pos: [max_rows] int32, last position that the row sees; -1 = padding row.
        row_block: [max_rows] int32, block of that position; -1 = padding row.
        row_end: [max_rows] int32, 1 more than that position.
        page_table: [num_seqs, max_pages] int32, -1 beyond a sequence's end.
        table_base: [num_seqs] int64, the sequence's first entry of `page_table`.
        no_base: [num_seqs] int64 of 0.
        arrivals: [COUNTED_ROWS] int32 of 0 for `BlockScratch`.
    """

    row_seq: torch.Tensor
    row_pos: torch.Tensor
    row_block: torch.Tensor
    row_end: torch.Tensor
    page_table: torch.Tensor
    table_base: torch.Tensor
    no_base: torch.Tensor
    arrivals: torch.Tensor

    @staticmethod
    def empty(max_rows: int, num_seqs: int, max_pages: int, device: torch.device) -> "PlannedRows":
        """Room for so many, all of it padding."""
        seq, pos, block, end = torch.full((4, max_rows), -1, dtype=torch.int32, device=device)
        table = torch.full((num_seqs, max_pages), -1, dtype=torch.int32, device=device)
        bases = torch.arange(num_seqs, dtype=torch.int64, device=device) * max_pages
        arrivals = torch.zeros(COUNTED_ROWS, dtype=torch.int32, device=device)
        return PlannedRows(seq, pos, block, end, table, bases, torch.zeros_like(bases), arrivals)

    def lay_out(self, ops: Ops, batch: PagedBatch, max_tokens: int, block_tokens: int) -> None:
        """Writes the rows and pages of a batch, of which every layer's selection then reads.

        Args:
            ops: the ops to use.
            batch: the batch.
            max_tokens: most tokens of a sequence; rows that see more become padding.
            block_tokens: tokens of one block.
        """
        ops.lay_out_batch(batch, max_tokens, self.row_seq, self.row_pos, self.page_table)
        torch.div(self.row_pos, block_tokens, rounding_mode="floor", out=self.row_block)
        torch.add(self.row_pos, 1, out=self.row_end)

    def query(
        self, index_q: torch.Tensor, index_weights: torch.Tensor, topk: int
    ) -> SelectionQuery:
        """The query of the first rows, as many as `index_q` [rows, index_heads, 128] has."""
        rows = len(index_q)
        lists = self.row_seq[:rows], self.row_pos[:rows]
        ends = self.row_block[:rows], self.row_end[:rows]
        return SelectionQuery(index_q, index_weights, *lists, topk, *ends)

    def of(self, num_seqs: int) -> "PlannedRows":
        """The same memory for so many sequences, of those that there is room for."""
        names = ("page_table", "table_base", "no_base")
        return replace(self, **{name: getattr(self, name)[:num_seqs] for name in names})


class PagedIndexKeys(ResidentKeyChoices):
    """Implements `selection.IndexKeys` over pages anywhere in device memory.

    A block of one page is a slot of its page's number; the pages of a longer one may lie apart, so
    it is read as blocks without a slot are: page by page, where they lie.
    """

    def __init__(
        self,
        ops: Ops,
        layout: IndexLayout,
        block_tokens: int,
        pooled: tuple[torch.Tensor, PooledTable],
        index_pages: torch.Tensor,
        planned: PlannedRows,
        num_tokens: int,
    ) -> None:
        """Keys of one layer.

        Args:
            ops: the ops to use.
            layout: how index rows are stored.
            block_tokens: tokens of one block.
            pooled: pages of pooled keys, and their table.
            index_pages: [num_pages, page_bytes] uint8.
            planned: the plan's rows and page table.
            num_tokens: most tokens of a sequence.
        """
        super().__init__(ops, layout, block_tokens, *pooled)
        self._index_pages, self._planned = index_pages, planned
        self.num_tokens, self.num_blocks = num_tokens, -(-num_tokens // block_tokens)

    def best_blocks(self, query: SelectionQuery, kept: int) -> KeptBlocks:
        """See `selection.IndexKeys`."""
        slots = self._slots_to_find(query.num_rows, kept) if self._has_slots else None
        return self._select_blocks(query, kept, self._planned.arrivals, slots)

    def best_of_all(
        self, query: SelectionQuery, topk: int, heads: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        return self._best_in_pages(query, self._index_pages, self._planned.page_table, topk, heads)

    def best_tokens(self, query: SelectionQuery, blocks: KeptBlocks, topk: int) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        return self._select_tokens(query, blocks, topk, as_rows=False)

    def best_rows(self, query: SelectionQuery, blocks: KeptBlocks, topk: int) -> torch.Tensor:
        """`best_tokens` as rows (page * 64 + place), of blocks of one page."""
        require(self._has_slots, f"blocks are {self.block_tokens} tokens, rows need {PAGE_TOKENS}")
        return self._select_tokens(query, blocks, topk, as_rows=True)

    def _select_tokens(
        self, query: SelectionQuery, blocks: KeptBlocks, topk: int, *, as_rows: bool
    ) -> torch.Tensor:
        logits = self._empty_logits(query, blocks.ids)
        lists = *self._blocks(query, blocks), query.row_pos
        how = self.block_tokens, topk, self._layout, logits
        queries, host = (query.index_q, query.index_weights), self._pages(query)
        return self._ops.select_tokens(*queries, *lists, *how, host=host, as_rows=as_rows)

    def token_logits(self, query: SelectionQuery, block_ids: torch.Tensor) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        logits = self._empty_logits(query, block_ids).fill_(float("-inf"))
        lists = *self._blocks(query, KeptBlocks(block_ids)), query.row_pos
        queries, host = (query.index_q, query.index_weights), self._pages(query)
        return self._ops.refine_logits(
            *queries, *lists, self.block_tokens, self._layout, logits, host
        )

    def position_logits(self, query: SelectionQuery, positions: torch.Tensor) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        return self._logits_at(query, self._index_pages, self._planned.page_table, positions)

    def count(self, what: str, amounts: torch.Tensor | int) -> None:
        """Nobody reads the counts of a wrapper."""

    @property
    def _has_slots(self) -> bool:
        return self.block_tokens == PAGE_TOKENS

    def _blocks(
        self, query: SelectionQuery, blocks: KeptBlocks
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The window, the slot of each block in it, and the blocks."""
        ids = blocks.ids.contiguous()
        if not self._has_slots:
            window = self._index_pages[: self.block_tokens // PAGE_TOKENS]
            return window, torch.full_like(ids, -1), ids
        slots = blocks.slots
        if slots is None:
            places = self._slots_to_find(*ids.shape)
            slots = self._ops.look_up_blocks(ids, query.row_seq, places)
        return self._index_pages, slots, ids

    def _slots_to_find(self, rows: int, kept: int) -> WindowSlots:
        planned = self._planned
        out = planned.row_seq.new_empty(rows, kept)
        table = planned.page_table.view(-1)
        bases = planned.table_base, planned.no_base
        return WindowSlots(table, *bases, out, num_slots=len(self._index_pages))

    def _pages(self, query: SelectionQuery) -> HostBlocks | None:
        if self._has_slots:
            return None
        return HostBlocks(self._index_pages, self._planned.page_table, query.row_seq)
