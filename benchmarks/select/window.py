"""Block windows of some sequences: with every block, or with all but some that a row will want."""

from dataclasses import dataclass

import torch

from benchmarks.ops.inputs import INDEX
from benchmarks.ops.pinned import PinnedPool
from benchmarks.select.rows import BLOCK_TOKENS, Rows
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import SlotRanges, SlotState

PAGES_PER_BLOCK = BLOCK_TOKENS // PAGE_TOKENS
_FORCED = 2  # the first and the newest block


@dataclass(frozen=True)
class Window:
    """Slots of blocks on the device, as many for each sequence, and what is on the host instead.

    Attributes:
        pages: [sequences * slots * 2, page_bytes] uint8.
        state, ranges: of `resolve`; the table has one entry for each block of each sequence.
        misses: blocks that each sequence's row wants and that have no slot.
        host_pages: [host pages, page_bytes] uint8, pinned.
        host_table: [sequences, pages] int32, host page of each page of the missing blocks, else -1.
    """

    pages: torch.Tensor
    state: SlotState
    ranges: SlotRanges
    misses: int
    host_pages: torch.Tensor
    host_table: torch.Tensor

    def absolute_table(self) -> torch.Tensor:
        """[sequences, blocks] int32, slot of each block counted from the first sequence's; -1."""
        table = self.state.slot_table.view(len(self.host_table), -1)
        return torch.where(table >= 0, table + self.ranges.slot_base[:, None].int(), -1)


def full_window(rows: Rows) -> Window:
    """Every block in the slot of its number."""
    sequences, blocks = rows.num_sequences, rows.blocks
    block = torch.arange(blocks, dtype=torch.int32, device="cuda").repeat(sequences)
    state = SlotState(block, torch.zeros_like(block), block.clone())
    ranges = _ranges(sequences, blocks, blocks)
    return Window(rows.index_pages, state, ranges, 0, rows.index_pages, rows.page_table)


def partial_window(rows: Rows, pool: PinnedPool, first_page: int, kept: int, misses: int) -> Window:
    """The best `2 * kept` blocks of each sequence but `misses` ones, in slots in random order.

    The missing ones are drawn from the better three quarters of what the row keeps, where no
    near-tie can put them out of its list; the forced ones are always there.

    Args:
        rows: one row for each sequence.
        pool: holds the missing blocks, from page `first_page` on.
        first_page: of the pool.
        kept: blocks that the row keeps.
        misses: of them, how many have no slot.

    Raises:
        ValueError: more misses than there are to draw from, or the pool is too small.
    """
    sequences, blocks = rows.num_sequences, rows.blocks
    slots = min(2 * kept, blocks - misses)
    logits = rows.block_logits_ref(torch.arange(sequences, device="cuda"))
    ranked = logits.topk(slots + misses, dim=1).indices  # [sequences, slots + misses]
    most = kept * 3 // 4
    if misses > most - _FORCED:
        raise ValueError(f"{misses} misses asked for, at most {most - _FORCED} of {kept} blocks")
    missing, held = _split(ranked, misses, most)
    slot = _shuffled(sequences, slots, slots)
    table = torch.full((sequences, blocks), -1, dtype=torch.int32, device="cuda")
    table.scatter_(1, held, slot.int())
    item = torch.empty_like(held).scatter_(1, slot, held).int().flatten()
    state = SlotState(item, torch.zeros_like(item), table.flatten())
    in_pool = pool.rows(INDEX.page_bytes)
    stop = first_page + missing.numel() * PAGES_PER_BLOCK
    if stop > len(in_pool):
        raise ValueError(f"{stop} host pages needed, the pool has {len(in_pool)}")
    host_page = torch.arange(first_page, stop, device="cuda")
    # by an index kernel, which may write to host memory in place
    in_pool.index_copy_(0, host_page, _block_pages(rows, missing))
    host_table = torch.full_like(rows.page_table, -1)
    host_table.scatter_(1, _pages_of(missing), host_page.int().view(sequences, -1))
    pages = _block_pages(rows, item.view(sequences, slots).long())
    return Window(pages, state, _ranges(sequences, slots, blocks), misses, in_pool, host_table)


def _split(ranked: torch.Tensor, misses: int, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Drawn ones [n, misses] of the first `most` columns but the forced, and the other columns."""
    drawn = _FORCED + _shuffled(len(ranked), most - _FORCED, misses)
    is_drawn = torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, drawn, True)
    return ranked[is_drawn].view(len(ranked), -1), ranked[~is_drawn].view(len(ranked), -1)


def _shuffled(rows: int, end: int, count: int) -> torch.Tensor:
    """[rows, count] int64, `count` different numbers below `end`, in random order."""
    return torch.rand(rows, end, device="cuda").argsort(1)[:, :count]


def _block_pages(rows: Rows, blocks: torch.Tensor) -> torch.Tensor:
    """Pages of blocks [sequences, n], as [sequences * n * 2, page_bytes]."""
    return rows.index_pages[rows.page_table.gather(1, _pages_of(blocks)).flatten().long()]


def _pages_of(blocks: torch.Tensor) -> torch.Tensor:
    """[sequences, n * 2] int64, pages of blocks within their sequence."""
    part = torch.arange(PAGES_PER_BLOCK, device=blocks.device)
    return (blocks.long()[:, :, None] * PAGES_PER_BLOCK + part).flatten(1)


def _ranges(sequences: int, slots: int, blocks: int) -> SlotRanges:
    number = torch.arange(sequences, device="cuda")
    return SlotRanges(number * slots, torch.full_like(number, slots), number * blocks)
