"""Score the tokens of each row's own blocks: the second half of hierarchical selection."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hisparse_kernels.index_rows import split_pages
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout
from hisparse_kernels.score_keys import score_keys
from hisparse_kernels.shapes import (
    Shapes,
    check_at_least,
    check_block_tokens,
)

_MIN_SLOT_ROWS = 8  # rows that must share a slot, on average, to make one GEMM per slot pay
_CHUNK_KEYS = 8192  # keys of one row's blocks that are dequantised at a time


@dataclass(frozen=True)
class HostBlocks:
    """Where the blocks without a slot are read from, in place.

    Attributes:
        pages: [num_host_pages, page_bytes] uint8, contiguous, at least one; on a GPU it may be
            pinned memory. Like the window it starts at a multiple of 16 bytes.
        page_table: [num_seqs, max_pages] int32, page of each 64 tokens; a negative number,
            and one that is no page of `pages`, = not there.
        row_seq: [rows] int32, sequence of each row; -1 = padding row, for which nothing is read.
    """

    pages: torch.Tensor
    page_table: torch.Tensor
    row_seq: torch.Tensor


def refine_logits(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_pages: torch.Tensor,
    block_slots: torch.Tensor,
    block_ids: torch.Tensor,
    row_pos: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
    out: torch.Tensor,
    host: HostBlocks | None = None,
) -> torch.Tensor:
    """Logits of the tokens of each row's blocks, written to `out`.

    Args:
        index_q: [rows, heads, 128] fp32, bf16 or e4m3.
        index_weights: [rows, heads] fp32, all scales but the key's folded in.
        index_pages: [num_slots * pages_per_block, page_bytes] uint8; slot s holds the pages
            s * pages_per_block onwards. At least one slot.
        block_slots: [rows, m] int32, slot of each block; -1 = read it from `host`, or, without one,
            leave its columns untouched.
        block_ids: [rows, m] int32, which block of the sequence it is; -1 = none: without a slot its
            columns stay untouched.
        row_pos: [rows] int32, the row's own position; later tokens become -inf. -1 = padding row.
        block_tokens: tokens of one block, a multiple of 64.
        layout: how index rows are stored.
        out: [rows, m * block_tokens] fp32, contiguous.
        host: where blocks without a slot lie; tokens of a page that is not there become -inf. A key
            has the same logit, bit for bit, wherever it is read from.

    Returns:
        `out`.
    """
    check_block_tokens(block_tokens, PAGE_TOKENS)
    shapes = Shapes(page_bytes=layout.page_bytes, columns=block_slots.shape[-1] * block_tokens)
    shapes.check_index_queries(index_q, index_weights)
    shapes.check_packed("index_pages", index_pages, "num_pages page_bytes", torch.uint8)
    check_at_least("number of index_pages", len(index_pages), block_tokens // PAGE_TOKENS)
    shapes.check("block_slots", block_slots, "rows m", torch.int32)
    shapes.check("block_ids", block_ids, "rows m", torch.int32)
    shapes.check("row_pos", row_pos, "rows", torch.int32)
    shapes.check_packed("out", out, "rows columns", torch.float32)
    check_host(shapes, host)
    args = (
        index_q,
        index_weights,
        index_pages,
        block_slots,
        block_ids,
        row_pos,
        block_tokens,
        layout,
        out,
        host,
    )
    if index_q.is_cuda:
        from hisparse_kernels.gpu.refine_logits import refine_logits_triton

        return refine_logits_triton(*args)
    return refine_logits_ref(*args)


def check_host(shapes: Shapes, host: HostBlocks | None) -> None:
    """Refuses host blocks that do not fit the call's `page_bytes` and `rows`."""
    if host is None:
        return
    shapes.check_packed("host.pages", host.pages, "num_host_pages page_bytes", torch.uint8)
    check_at_least("number of host.pages", len(host.pages), 1)
    shapes.check("host.page_table", host.page_table, "num_seqs max_pages", torch.int32)
    shapes.check("host.row_seq", host.row_seq, "rows", torch.int32)


def refine_logits_ref(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_pages: torch.Tensor,
    block_slots: torch.Tensor,
    block_ids: torch.Tensor,
    row_pos: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
    out: torch.Tensor,
    host: HostBlocks | None = None,
) -> torch.Tensor:
    tiles = out.view(*block_slots.shape, block_tokens)
    missing = None
    if host is not None:
        index_pages, block_slots, missing = _with_copies(
            index_pages, block_slots, block_ids, host, tiles
        )
    first_pos = block_ids * block_tokens
    held = block_slots >= 0
    tiles[held & (first_pos > row_pos[:, None])] = -torch.inf
    row, column = (held & (first_pos <= row_pos[:, None])).nonzero(as_tuple=True)
    slot = block_slots[row, column].long()
    slots = index_pages.view(-1, block_tokens // PAGE_TOKENS * layout.page_bytes)
    query = index_q.float()
    by_row = len(slot) < _MIN_SLOT_ROWS * torch.unique(slot).numel()
    most = _CHUNK_KEYS // block_tokens if by_row else len(row_pos)
    for pairs in _groups(row if by_row else slot, max(most, 1)):
        if by_row:
            rows, blocks = row[pairs[:1]], slots.index_select(0, slot[pairs])
        else:
            rows, blocks = row[pairs], slots[slot[pairs[0]]]
        keys, scale = split_pages(blocks.view(-1, layout.page_bytes), layout)
        scores = keys.new_empty(len(rows), keys.shape[0])
        score_keys(_take(query, rows), index_weights[rows], keys, scale, scores)
        tiles[row[pairs], column[pairs]] = scores.view(-1, block_tokens)
    _mask_later(tiles, row, column, first_pos, row_pos)
    if missing is not None:
        tiles.masked_fill_(missing, -torch.inf)
    return out


def _with_copies(
    index_pages: torch.Tensor,
    block_slots: torch.Tensor,
    block_ids: torch.Tensor,
    host: HostBlocks,
    tiles: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A window with copies of the host's blocks behind its own.

    Returns:
        It, its slots, and which of the tokens [rows, m, block_tokens] lie in no page.
    """
    pages_per_block = tiles.shape[2] // PAGE_TOKENS
    wanted = (block_slots < 0) & (block_ids >= 0) & (host.row_seq >= 0)[:, None]
    row, column = wanted.nonzero(as_tuple=True)
    seq, first = host.row_seq[row].long(), block_ids[row, column].long() * pages_per_block
    table = torch.nn.functional.pad(host.page_table, (0, pages_per_block), value=-1)
    entry = first[:, None] + torch.arange(pages_per_block, device=first.device)
    pages = table[seq[:, None], entry.clamp(max=table.shape[1] - 1)]  # [wanted, pages_per_block]
    slots, missing = block_slots.clone(), torch.zeros_like(tiles, dtype=torch.bool)
    slots[row, column] = len(index_pages) // pages_per_block + torch.arange(
        len(row), dtype=torch.int32, device=slots.device
    )
    is_missing = (pages < 0) | (pages >= len(host.pages))
    missing[row, column] = is_missing.repeat_interleave(PAGE_TOKENS, dim=1)
    copies = host.pages[pages.masked_fill(is_missing, 0).flatten().long()]
    return torch.cat([index_pages, copies]), slots, missing


def _groups(keys: torch.Tensor, most: int) -> Iterator[torch.Tensor]:
    """Positions of equal keys, ascending, in groups of up to `most`."""
    order = torch.argsort(keys, stable=True)
    _, counts = torch.unique_consecutive(keys[order], return_counts=True)
    for group in torch.split(order, counts.tolist()):
        yield from torch.split(group, most)


def _take(query: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):  # rows ascend, so this is a run: no copy
        return query[first : last + 1]
    return query.index_select(0, rows)


def _mask_later(
    tiles: torch.Tensor,
    row: torch.Tensor,
    column: torch.Tensor,
    first_pos: torch.Tensor,
    row_pos: torch.Tensor,
) -> None:
    """-inf at the positions after each row's own, in the tiles that hold any."""
    block_tokens = tiles.shape[2]
    visible = (row_pos[:, None] - first_pos)[row, column] + 1  # tokens of the tile in the past
    edge = visible < block_tokens
    token = torch.arange(block_tokens, device=tiles.device)
    later = token >= visible[edge, None]
    tiles[row[edge], column[edge]] = tiles[row[edge], column[edge]].masked_fill(later, -torch.inf)
