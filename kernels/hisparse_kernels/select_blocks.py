"""Choose the best blocks of each row by their pooled keys: scores and top-m as one op."""

from dataclasses import dataclass

import torch

from hisparse_kernels.block_topm import block_topm_ref
from hisparse_kernels.index_logits import paged_index_logits_ref
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout
from hisparse_kernels.look_up_blocks import look_up_blocks_ref
from hisparse_kernels.pooled_rows import (
    PooledTable,
    check_pooled_table,
    in_pages,
    pooled_pages_of,
)
from hisparse_kernels.shapes import Shapes, check_at_least
from hisparse_kernels.window_slots import WindowSlots

COUNTED_ROWS = 256


@dataclass(frozen=True)
class BlockScratch:
    """Memory that `select_blocks` works in; made once, for one call at a time.

    Attributes:
        logits: [rows, max_pages * 64] fp32; holds the blocks' scores afterwards, -inf from the
            newest block on.
        arrivals: [rows] int32, 0 before and after each call; None for COUNTED_ROWS rows and more,
            whose blocks are chosen in a launch of their own.
    """

    logits: torch.Tensor
    arrivals: torch.Tensor | None


def select_blocks(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    pooled_pages: torch.Tensor,
    pooled_table: PooledTable,
    row_seq: torch.Tensor,
    newest_block: torch.Tensor,
    num_kept: int,
    layout: IndexLayout,
    scratch: BlockScratch,
    out: torch.Tensor | None = None,
    slots: WindowSlots | None = None,
) -> torch.Tensor:
    """Ids of the `num_kept` blocks whose pooled keys score best, the first and newest among them.

    The same, bit for bit, as `paged_index_logits` of the blocks before the newest, `block_topm`.

    Args:
        index_q: [rows, heads, 128] fp32, bf16 or e4m3.
        index_weights: [rows, heads] fp32, all scales but the key's folded in.
        pooled_pages: [num_pooled_pages, page_bytes] uint8, contiguous.
        pooled_table: [num_seqs, max_pages] int32, pooled page of each 64 blocks; -1 beyond the end.
            Or the row of each block: max_pages * 64 columns of `PooledRows`.
        row_seq: [rows] int32, sequence of each row; -1 = padding row.
        newest_block: [rows] int32, block that holds the row's own token, below max_pages * 64;
            -1 = padding row.
        num_kept: blocks per row, at least 2; the forced ones count.
        layout: how pooled rows are stored.
        scratch: memory to work in.
        out: [rows, num_kept] int32, contiguous, to write to and return; None = allocate.
        slots: where to look the slots up, and their place; None = they are not wanted.

    Returns:
        [rows, num_kept] int32, block ids, ascending; -1 pads the tail. Equal scores: the lowest id.
    """
    columns = pooled_pages_of(pooled_table) * PAGE_TOKENS
    shapes = Shapes(page_bytes=layout.page_bytes, num_kept=num_kept, columns=columns)
    shapes.check_index_queries(index_q, index_weights)
    shapes.check_packed("pooled_pages", pooled_pages, "num_pooled_pages page_bytes", torch.uint8)
    check_pooled_table(shapes, "pooled_table", pooled_table)
    shapes.check("row_seq", row_seq, "rows", torch.int32)
    shapes.check("newest_block", newest_block, "rows", torch.int32)
    shapes.check_packed("scratch.logits", scratch.logits, "rows columns", torch.float32)
    if scratch.arrivals is not None:
        shapes.check_packed("scratch.arrivals", scratch.arrivals, "rows", torch.int32)
    elif len(row_seq) < COUNTED_ROWS:
        raise ValueError(f"scratch.arrivals is None for {len(row_seq)} rows, needs {COUNTED_ROWS}")
    shapes.check_out(out, "rows num_kept", torch.int32)
    if slots is not None:
        slots.check(shapes)
    check_at_least("num_kept", num_kept, 2)
    args = (
        index_q,
        index_weights,
        pooled_pages,
        pooled_table,
        row_seq,
        newest_block,
        num_kept,
        layout,
        scratch,
        out,
        slots,
    )
    if index_q.is_cuda:
        from hisparse_kernels.gpu.select_blocks import select_blocks_triton

        return select_blocks_triton(*args)
    return select_blocks_ref(*args)


def select_blocks_ref(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    pooled_pages: torch.Tensor,
    pooled_table: PooledTable,
    row_seq: torch.Tensor,
    newest_block: torch.Tensor,
    num_kept: int,
    layout: IndexLayout,
    scratch: BlockScratch,
    out: torch.Tensor | None = None,
    slots: WindowSlots | None = None,
) -> torch.Tensor:
    pages, table = in_pages(pooled_pages, pooled_table, layout)
    keys = pages, table, row_seq, newest_block.clamp(min=0)
    logits = paged_index_logits_ref(index_q, index_weights, *keys, layout, out=scratch.logits)
    blocks = block_topm_ref(logits, newest_block, num_kept, out)
    if slots is not None:
        look_up_blocks_ref(blocks, row_seq, slots)
    return blocks
