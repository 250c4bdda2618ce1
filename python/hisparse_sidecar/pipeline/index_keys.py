"""The index keys of one anchor layer in a step, wherever they lie: pooled keys and block window."""

import torch

from hisparse_kernels.refine_logits import HostBlocks
from hisparse_sidecar.pipeline.block_window import BlockWindow
from hisparse_sidecar.pipeline.index_key_choices import IndexKeyChoices
from hisparse_sidecar.selection import KeptBlocks, SelectionQuery
from hisparse_sidecar.selection.flat import all_blocks
from hisparse_sidecar.stats import GroupTraffic
from hisparse_sidecar.step.step import Step
from hisparse_sidecar.tiers.tiers import Tiers

# a link that few rows hardly use is read twice, beside the layer, rather than waited for
_MOST_ROWS_IN_PLACE = 8


class LayerIndexKeys(IndexKeyChoices):
    """Index keys of one anchor group during one step; implements `selection.IndexKeys`."""

    def __init__(self, tiers: Tiers, step: Step, group: int, traffic: GroupTraffic) -> None:
        pooled = tiers.device.pooled_pages[group], step.pooled_table
        super().__init__(tiers.ops, tiers.config.index, tiers.config.block_tokens, *pooled)
        self._tiers, self._step, self._group, self._traffic = tiers, step, group, traffic
        self._window = BlockWindow(tiers, step, group, traffic)
        self._is_fetching = False
        self._host_pages = tiers.host.index_pages[group]
        self.num_tokens = step.most_tokens
        self.num_blocks = -(-self.num_tokens // self.block_tokens)

    # -- what selectors ask for ---------------------------------------------------------------

    @property
    def all_resident(self) -> bool:
        """See `selection.IndexKeys`."""
        return self._window.has_room_for_all

    @property
    def scores_positions(self) -> bool:
        """See `selection.IndexKeys`."""
        return self._step.kind == "decode" and self._window.has_room_for_all

    def is_resident(self, row: int) -> bool:
        """See `selection.IndexKeys`."""
        for sequence in self._step.sequences:
            if row < sequence.num_rows:
                decodes = self._step.kind == "decode"
                return (self._window.holds if decodes else self._window.has_room)(sequence)
            row -= sequence.num_rows
        return False

    def best_blocks(self, query: SelectionQuery, kept: int) -> KeptBlocks:
        """See `selection.IndexKeys`."""
        self._settle()
        decodes = self._step.kind == "decode"
        slots = self._window.slots_to_find(query.num_rows, kept) if decodes else None
        return self._select_blocks(query, kept, self._tiers.device.arrivals, slots)

    def best_of_all(
        self, query: SelectionQuery, topk: int, heads: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `selection.IndexKeys`.

        Where the window holds everything, positions are scored in their order, else blocks by list.
        """
        self._settle()
        if self._holds_all(query, heads):
            window = self._window.pages, self._window.slot_pages()
            return self._best_in_pages(query, *window, topk, heads)
        if heads is not None:
            query = query.with_heads(heads)
        ids = all_blocks(query, self)
        if self._is_shared_stream(ids.shape[1]):
            return self.top_positions(self.token_logits(query, ids), ids, topk)
        return self.best_tokens(query, KeptBlocks(ids), topk)

    def best_tokens(self, query: SelectionQuery, blocks: KeptBlocks, topk: int) -> torch.Tensor:
        """See `selection.IndexKeys`.

        In a decode step, blocks outside the window are read by the scores themselves if rows are
        few or the window is too small, and else copied to it first; a prefill chunk streams.
        """
        if self._step.kind == "prefill":
            return self._best_streamed(query, blocks.ids, topk)
        self._settle()
        ids, slots = blocks.ids, blocks.slots
        if self._window.load():
            slots = None  # the blocks lay elsewhere when these were looked up
        if self._window.has_room_for_all:
            if slots is None:
                slots = self._window.look_up(query.row_seq, ids)
            return self._select_tokens(query, ids, slots, topk)
        fits = self._window.fits(ids.shape[1])
        if fits and query.num_rows > _MOST_ROWS_IN_PLACE:
            return self._select_tokens(query, ids, self._fetched(query, ids), topk)
        if slots is None:
            slots = self._window.look_up(query.row_seq, ids)
        self._count_reads(ids, slots, also_items=not fits)
        host = HostBlocks(self._host_pages, self._step.page_table, query.row_seq)
        found = self._select_tokens(query, ids, slots, topk, host)
        if fits:
            self._fetch_beside(query, ids)
        return found

    def token_logits(self, query: SelectionQuery, block_ids: torch.Tensor) -> torch.Tensor:
        """See `selection.IndexKeys`. Blocks stream through the window."""
        self._settle()
        shape = (query.num_rows, block_ids.shape[1] * self.block_tokens)
        logits = torch.full(shape, float("-inf"), device=query.row_pos.device)
        for tile in self._window.tiles():
            slots = self._window.stream(query, block_ids, tile)
            lists = self._window.pages, slots, block_ids, query.row_pos
            queries = query.index_q, query.index_weights
            self._ops.refine_logits(*queries, *lists, self.block_tokens, self._layout, logits)
        return logits

    def position_logits(self, query: SelectionQuery, positions: torch.Tensor) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        self._settle()
        self._window.load()
        table = self._window.slot_pages().page_table()
        return self._logits_at(query, self._window.pages, table, positions)

    def count(self, what: str, amounts: torch.Tensor | int) -> None:
        """See `selection.IndexKeys`."""
        counts = self._traffic.selection
        if isinstance(amounts, int):
            self._step.watch.see_number(counts, what, amounts)
        else:
            self._step.watch.see_amounts(counts, what, amounts)

    # -- how tokens are chosen ----------------------------------------------------------------

    def _holds_all(self, query: SelectionQuery, heads: torch.Tensor | None) -> bool:
        """Brings every block to the window if it has room, and says whether it has.

        A prefill chunk of all heads is better scored by list, whose tiles a pipeline reads.
        """
        if self._step.kind == "decode" and self._window.has_room_for_all:
            self._window.load()
            return True
        if self._step.kind == "decode" or heads is None:
            return False
        tiles = self._window.tiles()
        if len(tiles) != 1:
            return False
        self._window.stream(query, all_blocks(query, self), tiles[0])
        return True

    def _is_shared_stream(self, num_scored: int) -> bool:
        """Whether rows of one sequence would each read its missing blocks from the host."""
        rows = max((sequence.num_rows for sequence in self._step.sequences), default=0)
        if self._step.frame is not None:
            rows = self._tiers.config.max_step_rows
        return self._step.kind == "decode" and rows > 1 and not self._window.fits(num_scored)

    def _best_streamed(
        self, query: SelectionQuery, block_ids: torch.Tensor, topk: int
    ) -> torch.Tensor:
        tiles = self._window.tiles()
        if len(tiles) > 1:
            return self.top_positions(self.token_logits(query, block_ids), block_ids, topk)
        slots = self._window.stream(query, block_ids, tiles[0])
        return self._select_tokens(query, block_ids, slots, topk)

    def _select_tokens(
        self,
        query: SelectionQuery,
        block_ids: torch.Tensor,
        slots: torch.Tensor,
        topk: int,
        host: HostBlocks | None = None,
    ) -> torch.Tensor:
        logits = self._empty_logits(query, block_ids)
        lists = self._window.pages, slots, block_ids, query.row_pos
        how = self.block_tokens, topk, self._layout, logits
        queries = query.index_q, query.index_weights
        return self._ops.select_tokens(*queries, *lists, *how, host=host)

    def _fetched(self, query: SelectionQuery, block_ids: torch.Tensor) -> torch.Tensor:
        """Slots of the blocks, once the missing ones were copied to the window."""
        stamps, traffic = self._step.select_stamps, self._traffic.blocks
        return self._window.make_resident(block_ids, query.row_seq, stamps, traffic)

    def _fetch_beside(self, query: SelectionQuery, block_ids: torch.Tensor) -> None:
        """Copies missing blocks to the window for the next step; nothing in this layer waits."""
        with self._tiers.side.beside():
            slots = self._fetched(query, block_ids)
        self._step.held += [query.row_seq, block_ids, slots]
        self._is_fetching = True

    def _settle(self) -> None:
        """Waits, on the device, until the window is as the host thinks it is."""
        if self._is_fetching:
            self._tiers.side.join()
            self._is_fetching = False

    def _count_reads(
        self, block_ids: torch.Tensor, slots: torch.Tensor, *, also_items: bool
    ) -> None:
        """Counts bytes that are read where they lie; and items, where no resolve counts them."""
        watch, traffic = self._step.watch, self._traffic.blocks
        asked = block_ids >= 0
        missing = (asked & (slots < 0)).sum(1)
        block_bytes = self._tiers.config.pages_per_block * self._layout.page_bytes
        watch.see_amounts(traffic, "bytes_read_in_place", missing * block_bytes)
        if also_items:
            watch.see_amounts(traffic, "requests", asked.sum(1))
            watch.see_amounts(traffic, "misses", missing)
