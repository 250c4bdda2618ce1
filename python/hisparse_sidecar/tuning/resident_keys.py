"""Index keys of random sequences, all on the device: what a selector sees, without tiers."""

from dataclasses import dataclass, field

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.index_logits import SlotPages
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout
from hisparse_kernels.select_blocks import BlockScratch
from hisparse_kernels.window_slots import WindowSlots
from hisparse_sidecar.pipeline.index_key_choices import ResidentKeyChoices
from hisparse_sidecar.selection.contract import KeptBlocks, SelectionQuery
from hisparse_sidecar.selection.flat import all_blocks
from hisparse_sidecar.stats import SelectionCounts


@dataclass(frozen=True)
class StoredKeys:
    """Keys of sequences of one length, in pages, with their pooled keys.

    Attributes:
        index_pages: [sequences * pages, page_bytes] uint8, sequence after sequence.
        pooled_pages: [sequences * pooled pages, page_bytes] uint8.
        pooled_table: [sequences, pooled pages] int32.
    """

    index_pages: torch.Tensor
    pooled_pages: torch.Tensor
    pooled_table: torch.Tensor


@dataclass
class ResidentKeys(ResidentKeyChoices):
    """Implements `selection.IndexKeys`: every block has the slot of its number.

    Attributes:
        ops: the ops to use.
        layout: of the keys.
        stored: the keys.
        num_tokens: tokens of each sequence.
        block_tokens: tokens of one block.
        counts: what selectors count, read at once.
        num_blocks: blocks of a sequence, the open one included.
    """

    ops: Ops
    layout: IndexLayout
    stored: StoredKeys
    num_tokens: int
    block_tokens: int
    counts: SelectionCounts = field(default_factory=SelectionCounts)
    num_blocks: int = field(init=False)

    def __post_init__(self) -> None:
        pooled = self.stored.pooled_pages, self.stored.pooled_table
        super().__init__(self.ops, self.layout, self.block_tokens, *pooled)
        self.num_blocks = -(-self.num_tokens // self.block_tokens)
        sequences, device = len(self.stored.pooled_table), self.stored.pooled_table.device
        first = torch.arange(sequences, device=device) * self.num_blocks
        slots = torch.arange(self.num_blocks, dtype=torch.int32, device=device).repeat(sequences)
        per_block = self.block_tokens // PAGE_TOKENS
        self._slot_pages = SlotPages(slots, first, first, self.num_blocks, per_block)

    def best_blocks(self, query: SelectionQuery, kept: int) -> KeptBlocks:
        """See `selection.IndexKeys`."""
        logits = query.index_weights.new_empty(query.num_rows, self.pooled_columns)
        scratch = BlockScratch(logits, torch.zeros_like(query.row_seq))
        pooled = *self._pooled(query), query.newest_blocks(self.block_tokens)
        slots = self._slots_to_find(query.num_rows, kept)
        ids = self.ops.select_blocks(*pooled, kept, self.layout, scratch, slots=slots)
        return KeptBlocks(ids, logits, slots.out)

    def best_of_all(
        self, query: SelectionQuery, topk: int, heads: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `selection.IndexKeys`; as in a pipeline, rows of a chunk go through lists."""
        if heads is None and query.num_rows > len(self.stored.pooled_table):
            return self.best_tokens(query, KeptBlocks(all_blocks(query, self)), topk)
        return self._best_in_pages(query, self.stored.index_pages, self._slot_pages, topk, heads)

    def best_tokens(self, query: SelectionQuery, blocks: KeptBlocks, topk: int) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        logits = self._empty_logits(query, blocks.ids)
        slots = self._slots(query, blocks.ids) if blocks.slots is None else blocks.slots
        lists = self.stored.index_pages, slots, blocks.ids, query.row_pos
        how = self.block_tokens, topk, self.layout, logits
        return self.ops.select_tokens(query.index_q, query.index_weights, *lists, *how)

    def token_logits(self, query: SelectionQuery, block_ids: torch.Tensor) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        shape = query.num_rows, block_ids.shape[1] * self.block_tokens
        logits = torch.full(shape, float("-inf"), device=block_ids.device)
        slots = self._slots(query, block_ids)
        lists = self.stored.index_pages, slots, block_ids, query.row_pos
        queries = query.index_q, query.index_weights
        return self.ops.refine_logits(*queries, *lists, self.block_tokens, self.layout, logits)

    def position_logits(self, query: SelectionQuery, positions: torch.Tensor) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        table = self._slot_pages.page_table()
        return self._logits_at(query, self.stored.index_pages, table, positions)

    def count(self, what: str, amounts: torch.Tensor | int) -> None:
        """Adds at once: waits for the device."""
        added = amounts if isinstance(amounts, int) else int(amounts.sum())
        setattr(self.counts, what, getattr(self.counts, what) + added)

    def _slots(self, query: SelectionQuery, block_ids: torch.Tensor) -> torch.Tensor:
        slots = self._slots_to_find(*block_ids.shape)
        return self.ops.look_up_blocks(block_ids.contiguous(), query.row_seq, slots)

    def _slots_to_find(self, rows: int, kept: int) -> WindowSlots:
        pages = self._slot_pages
        out = torch.empty(rows, kept, dtype=torch.int32, device=pages.slot_table.device)
        return WindowSlots(pages.slot_table, pages.table_base, pages.slot_base, out)


def store_keys(
    ops: Ops, keys: torch.Tensor, num_sequences: int, block_tokens: int, layout: IndexLayout
) -> StoredKeys:
    """The same keys for each of some sequences, in pages of their own.

    Args:
        ops: the ops to use.
        keys: [tokens, 128] fp32.
        num_sequences: how many.
        block_tokens: tokens of one block.
        layout: how to store them.
    """
    blocks = -(-len(keys) // block_tokens)
    pages, device = blocks * block_tokens // PAGE_TOKENS, keys.device

    def empty(count: int) -> torch.Tensor:
        return torch.zeros(count, layout.page_bytes, dtype=torch.uint8, device=device)

    def numbers(*shape: int) -> torch.Tensor:
        count = torch.Size(shape).numel()
        return torch.arange(count, dtype=torch.int32, device=device).view(shape)

    one, rows = empty(pages), ops.pack_index_rows(keys, layout)
    ops.write_index_rows(one, torch.arange(len(keys), device=device), rows, layout)
    pooled_pages = -(-blocks // PAGE_TOKENS)
    pooled, first = empty(pooled_pages), torch.zeros(1, dtype=torch.int64, device=device)
    sums, lengths = torch.zeros(1, 128, device=device), first.int() + len(keys)
    places = sums, first, pooled, first, block_tokens, layout
    ops.rebuild_pooled_keys(one, numbers(1, pages), lengths, *places)
    copies = one.repeat(num_sequences, 1), pooled.repeat(num_sequences, 1)
    return StoredKeys(*copies, numbers(num_sequences, pooled_pages))
