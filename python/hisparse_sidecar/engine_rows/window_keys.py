"""Index keys of one layer in a decode step: pooled keys, windows, and the host pool behind them."""

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.refine_logits import HostBlocks
from hisparse_kernels.resolve import MissPlan, SlotRanges, SlotState
from hisparse_kernels.window_slots import WindowSlots
from hisparse_sidecar.engine_rows.index_part import INDEX_LAYOUT
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.pipeline.index_key_choices import IndexKeyChoices
from hisparse_sidecar.selection.contract import KeptBlocks, SelectionQuery


class WindowKeys(IndexKeyChoices):
    """Implements `selection.IndexKeys` for selections that go by pages; a block is a page.

    A list that fits a window has its missing pages copied there first; of a longer one they are
    read where they lie. Which it is depends on its width alone, as a captured graph needs.
    """

    def __init__(
        self,
        ops: Ops,
        pages: torch.Tensor,
        host_pages: torch.Tensor,
        page_table: torch.Tensor,
        pooled: tuple[torch.Tensor, torch.Tensor],
        window: tuple[SlotState, SlotRanges, torch.Tensor, MissPlan],
        arrivals: torch.Tensor,
        num_blocks: int,
    ) -> None:
        """Keys of one layer.

        Args:
            ops: the ops to use.
            pages: [num_pages, page_bytes] uint8, the engine's index pages; slots are pages of it.
            host_pages: [host_pages, page_bytes] uint8.
            page_table: [num_seqs, max_pages] int32, host pages of each sequence.
            pooled: pages of pooled keys, and their table.
            window: its state, each sequence's part of it, a step's stamps [2] int32, and a plan
                of as many misses as pages come and go.
            arrivals: [COUNTED_ROWS] int32 of 0 for `BlockScratch`.
            num_blocks: most pages of a sequence, at least 2.
        """
        super().__init__(ops, INDEX_LAYOUT, PAGE_TOKENS, *pooled)
        self._pages, self._host_pages, self._page_table = pages, host_pages, page_table
        self._window, self._arrivals = window, arrivals
        self.num_blocks, self.num_tokens = num_blocks, num_blocks * PAGE_TOKENS

    # -- what selectors ask for ---------------------------------------------------------------

    @property
    def all_resident(self) -> bool:
        """They are not."""
        return False

    @property
    def scores_positions(self) -> bool:
        """They cannot be."""
        return False

    def is_resident(self, row: int) -> bool:
        """Of no row."""
        del row
        return False

    def best_blocks(self, query: SelectionQuery, kept: int) -> KeptBlocks:
        """See `selection.IndexKeys`."""
        slots = None if self._fits(kept) else self._slots_to_find(query.num_rows, kept)
        return self._select_blocks(query, kept, self._arrivals, slots)

    def best_tokens(self, query: SelectionQuery, blocks: KeptBlocks, topk: int) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        ids = blocks.ids.contiguous()
        if self._fits(ids.shape[1]):
            slots, host = self._fetched(query, ids), None
        else:
            found = blocks.slots
            slots = self._looked_up(query, ids) if found is None else found
            host = self._on_host(query)
        logits = self._empty_logits(query, ids)
        lists = self._pages, slots, ids, query.row_pos
        how = PAGE_TOKENS, topk, self._layout, logits
        return self._ops.select_tokens(query.index_q, query.index_weights, *lists, *how, host=host)

    def token_logits(self, query: SelectionQuery, block_ids: torch.Tensor) -> torch.Tensor:
        """See `selection.IndexKeys`. Missing pages are read where they lie."""
        ids = block_ids.contiguous()
        logits = self._empty_logits(query, ids).fill_(float("-inf"))
        lists = self._pages, self._looked_up(query, ids), ids, query.row_pos
        how = PAGE_TOKENS, self._layout, logits, self._on_host(query)
        return self._ops.refine_logits(query.index_q, query.index_weights, *lists, *how)

    def best_of_all(
        self, query: SelectionQuery, topk: int, heads: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Raises WrongState: a scan of every key is refused where the settings are read."""
        raise WrongState(f"a scan of every key for {topk} tokens, needs a selection by pages")

    def position_logits(self, query: SelectionQuery, positions: torch.Tensor) -> torch.Tensor:
        """Raises WrongState: see `scores_positions`."""
        raise WrongState(f"scores of {positions.shape[1]} positions, needs a selection by pages")

    def count(self, what: str, amounts: torch.Tensor | int) -> None:
        """Nobody reads the counts of an engine's selection."""

    # -- pages --------------------------------------------------------------------------------

    def _fits(self, width: int) -> bool:
        """Whether a window holds a list: of its pages the newest is the open one."""
        return width <= self._window[3].miss_item.shape[1]

    def _fetched(self, query: SelectionQuery, ids: torch.Tensor) -> torch.Tensor:
        """Slots of the pages, once the missing ones were copied to the window."""
        state, ranges, stamps, plan = self._window
        slots = torch.empty_like(ids)
        self._ops.resolve(ids, query.row_seq, state, ranges, stamps, plan, slots)
        to = self._page_table, plan, self._pages, PAGE_TOKENS
        self._ops.swap_in_blocks(self._host_pages, *to)
        return slots

    def _looked_up(self, query: SelectionQuery, ids: torch.Tensor) -> torch.Tensor:
        places = self._slots_to_find(*ids.shape)
        return self._ops.look_up_blocks(ids, query.row_seq, places)

    def _slots_to_find(self, rows: int, kept: int) -> WindowSlots:
        state, ranges, _, _ = self._window
        out = torch.empty(rows, kept, dtype=torch.int32, device=self._pages.device)
        return WindowSlots(state.slot_table, ranges.table_base, ranges.slot_base, out)

    def _on_host(self, query: SelectionQuery) -> HostBlocks:
        return HostBlocks(self._host_pages, self._page_table, query.row_seq)
