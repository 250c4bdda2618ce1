"""Copy what a miss plan names from host pages to device slots: KV rows, or whole index blocks."""

from dataclasses import dataclass

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import MissPlan
from hisparse_kernels.shapes import Shapes, check_block_tokens


@dataclass(frozen=True)
class FreshRows:
    """Rows that a step itself appends: those that a plan misses do not come from the host.

    Attributes:
        rows: [n, row_bytes] uint8, stored KV rows; those of a sequence lie together, ascending.
        first_item: [num_seqs] int32, the sequence's first fresh position; all from there on are.
        first_row: [num_seqs] int32, where that position's row lies in `rows`.
        num_missed: [num_seqs] int32, becomes how many misses of the plan were fresh (a refused
            sequence: 0); None = it is known already.
    """

    rows: torch.Tensor
    first_item: torch.Tensor
    first_row: torch.Tensor
    num_missed: torch.Tensor | None = None

    def check(self, shapes: Shapes) -> None:
        """Raises ValueError unless every tensor is as it must be."""
        shapes.check_packed("fresh.rows", self.rows, "num_fresh_rows row_bytes", torch.uint8)
        shapes.check_packed("fresh.first_item", self.first_item, "num_seqs", torch.int32)
        shapes.check_packed("fresh.first_row", self.first_row, "num_seqs", torch.int32)
        if self.num_missed is not None:
            shapes.check_packed("fresh.num_missed", self.num_missed, "num_seqs", torch.int32)


def swap_in(
    host_rows: torch.Tensor,
    page_table: torch.Tensor,
    plan: MissPlan,
    hot_rows: torch.Tensor,
    fresh: FreshRows | None = None,
    max_programs: int | None = None,
) -> None:
    """Copies the missed KV rows into their slots, in place.

    Args:
        host_rows: [num_pages * 64, row_bytes] uint8.
        page_table: [num_seqs, max_pages] int32, physical page of each page; the pages of all
            missed items exist.
        plan: items are token positions, destinations rows of `hot_rows`.
        hot_rows: [num_slots, row_bytes] uint8, written.
        fresh: rows that are copied from the device; None = all come from the host.
        max_programs: of a kernel on a GPU, where others are to run beside it; one for each
            sequence at least, which do not start before their turn. None = as many as fill a GPU.
    """
    if max_programs is not None and max_programs < 1:
        raise ValueError(f"max_programs is {max_programs}, must be >= 1")
    shapes = Shapes()
    shapes.check_packed("host_rows", host_rows, "num_host_rows row_bytes", torch.uint8)
    _check_pages(shapes, page_table, plan)
    shapes.check_packed("hot_rows", hot_rows, "num_slots row_bytes", torch.uint8)
    if fresh is not None:
        fresh.check(shapes)
    if host_rows.is_cuda:
        from hisparse_kernels.gpu.swap_in import swap_in_triton

        swap_in_triton(host_rows, page_table, plan, hot_rows, fresh, max_programs)
        return
    swap_in_ref(host_rows, page_table, plan, hot_rows, fresh, max_programs)


def swap_in_ref(
    host_rows: torch.Tensor,
    page_table: torch.Tensor,
    plan: MissPlan,
    hot_rows: torch.Tensor,
    fresh: FreshRows | None = None,
    max_programs: int | None = None,
) -> None:
    del max_programs
    seq, item, dst = _misses(plan)
    if fresh is not None:
        offset = item - fresh.first_item[seq]
        is_fresh = offset >= 0
        row = (fresh.first_row[seq] + offset)[is_fresh]
        hot_rows.index_copy_(0, dst[is_fresh], fresh.rows.index_select(0, row))
        if fresh.num_missed is not None:
            fresh.num_missed.zero_().index_add_(0, seq, is_fresh.int())
        seq, item, dst = seq[~is_fresh], item[~is_fresh], dst[~is_fresh]
    src = page_table[seq, item // PAGE_TOKENS].long() * PAGE_TOKENS + item % PAGE_TOKENS
    hot_rows.index_copy_(0, dst, host_rows.index_select(0, src))


def swap_in_blocks(
    host_pages: torch.Tensor,
    page_table: torch.Tensor,
    plan: MissPlan,
    window_pages: torch.Tensor,
    block_tokens: int,
) -> None:
    """Copies the pages of the missed index-key blocks into their slots, in place.

    Args:
        host_pages: [num_pages, page_bytes] uint8.
        page_table: [num_seqs, max_pages] int32, physical page of each page; -1 = does not exist
            yet: that part of the slot is left as it is.
        plan: items are block ids, destinations block slots.
        window_pages: [num_slots * pages_per_block, page_bytes] uint8, written.
        block_tokens: tokens of one block, a multiple of 64.
    """
    check_block_tokens(block_tokens, PAGE_TOKENS)
    shapes = Shapes()
    shapes.check_packed("host_pages", host_pages, "num_pages page_bytes", torch.uint8)
    _check_pages(shapes, page_table, plan)
    shapes.check_packed("window_pages", window_pages, "num_window_pages page_bytes", torch.uint8)
    if host_pages.is_cuda:
        from hisparse_kernels.gpu.swap_in import swap_in_blocks_triton

        swap_in_blocks_triton(host_pages, page_table, plan, window_pages, block_tokens)
        return
    swap_in_blocks_ref(host_pages, page_table, plan, window_pages, block_tokens)


def swap_in_blocks_ref(
    host_pages: torch.Tensor,
    page_table: torch.Tensor,
    plan: MissPlan,
    window_pages: torch.Tensor,
    block_tokens: int,
) -> None:
    seq, item, dst = _misses(plan)
    pages_per_block = block_tokens // PAGE_TOKENS
    part = torch.arange(pages_per_block, device=item.device)
    page = item[:, None] * pages_per_block + part  # [misses, pages_per_block]
    inside = page < page_table.shape[1]
    src = page_table[seq[:, None], page.where(inside, 0)].long().where(inside, -1)
    exists = src >= 0
    window_page = dst[:, None] * pages_per_block + part
    window_pages.index_copy_(0, window_page[exists], host_pages.index_select(0, src[exists]))


def _misses(plan: MissPlan) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sequence, item and destination of every miss of the plan, int64."""
    entry = torch.arange(plan.miss_item.shape[1], device=plan.miss_item.device)
    seq, rank = (entry < plan.miss_count[:, None]).nonzero(as_tuple=True)
    return seq, plan.miss_item[seq, rank].long(), plan.miss_dst[seq, rank].long()


def _check_pages(shapes: Shapes, page_table: torch.Tensor, plan: MissPlan) -> None:
    shapes.check("page_table", page_table, "num_seqs max_pages", torch.int32)
    shapes.check("miss_item", plan.miss_item, "num_seqs cap", torch.int32)
    shapes.check("miss_dst", plan.miss_dst, "num_seqs cap", torch.int32)
    shapes.check("miss_count", plan.miss_count, "num_seqs", torch.int32)
