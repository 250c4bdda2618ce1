"""Score every key of a range: the flat indexer, for ragged prefill and for paged decode."""

from dataclasses import dataclass

import torch

from hisparse_kernels.index_rows import split_pages, split_rows
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout
from hisparse_kernels.score_keys import KEY_ALIGN, score_keys
from hisparse_kernels.shapes import Shapes, check_at_least

_CHUNK_KEYS = 8192


def index_logits(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_rows: torch.Tensor,
    key_start: torch.Tensor,
    key_end: torch.Tensor,
    layout: IndexLayout,
    out: torch.Tensor | None = None,
    heads: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits of packed keys: scale[s] * sum_j w[t, j] * relu(q[t, j] . k[s]).

    Args:
        index_q: [rows, heads, 128] fp32, bf16 or e4m3.
        index_weights: [rows, heads] fp32, all scales but the key's folded in.
        index_rows: [T, row_bytes] uint8, stored index rows of all sequences, packed.
        key_start: [rows] int32, first key that the row may see.
        key_end: [rows] int32, one past the last; <= key_start for a padding row.
        layout: how index rows are stored.
        out: [rows, T] fp32, contiguous, to write to and return; None = allocate.
        heads: [rows, h] int32, the heads of each row that score, in this order; -1 = any head: it
            may stand in padding rows alone. None = all heads.

    Returns:
        [rows, T] fp32, -inf outside [key_start, key_end).
    """
    shapes = _check_queries(index_q, index_weights, layout, heads)
    shapes.check("index_rows", index_rows, "T row_bytes", torch.uint8)
    shapes.check("key_start", key_start, "rows", torch.int32)
    shapes.check("key_end", key_end, "rows", torch.int32)
    if out is not None:
        shapes.check_packed("out", out, "rows T", torch.float32)
    args = index_q, index_weights, index_rows, key_start, key_end, layout, out, heads
    if index_q.is_cuda:
        from hisparse_kernels.gpu.index_logits import index_logits_triton

        return index_logits_triton(*args)
    return index_logits_ref(*args)


def index_logits_ref(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_rows: torch.Tensor,
    key_start: torch.Tensor,
    key_end: torch.Tensor,
    layout: IndexLayout,
    out: torch.Tensor | None = None,
    heads: torch.Tensor | None = None,
) -> torch.Tensor:
    num_keys = index_rows.shape[0]
    padding = index_rows.new_zeros(-num_keys % KEY_ALIGN, layout.row_bytes)
    padded = torch.cat([index_rows, padding])
    query, weights = _pick_heads(index_q, index_weights, heads)
    logits = weights.new_empty(len(query), padded.shape[0])
    for start in range(0, padded.shape[0], _CHUNK_KEYS):
        keys, scale = split_rows(padded[start : start + _CHUNK_KEYS], layout)
        score_keys(query, weights, keys, scale, logits[:, start : start + _CHUNK_KEYS])
    key = torch.arange(num_keys, device=logits.device)
    outside = (key < key_start[:, None]) | (key >= key_end[:, None])
    logits = logits[:, :num_keys].masked_fill_(outside, -torch.inf)
    return logits if out is None else out.copy_(logits)


@dataclass(frozen=True)
class SlotPages:
    """Pages of sequences that lie in a block window whole, by the table that `resolve` keeps.

    Attributes:
        slot_table: [entries] int16 or int32, slot of each block, relative to its sequence's first;
            -1 = not there.
        table_base: [num_seqs] int64, entry of block 0.
        slot_base: [num_seqs] int64, first slot.
        num_blocks: blocks of the longest sequence.
        pages_per_block: pages of one block, one after the other.
    """

    slot_table: torch.Tensor
    table_base: torch.Tensor
    slot_base: torch.Tensor
    num_blocks: int
    pages_per_block: int

    @property
    def max_pages(self) -> int:
        """Pages of the longest sequence."""
        return self.num_blocks * self.pages_per_block

    def page_table(self) -> torch.Tensor:
        """[num_seqs, max_pages] int32, the same as a table; -1 = not there.

        Beyond a sequence's end stands any page of the window.
        """
        device = self.slot_table.device
        blocks = torch.arange(self.num_blocks, device=device)
        entries = self.table_base[:, None] + blocks
        # a shorter sequence may be the table's last
        slots = self.slot_table[entries.clamp(max=len(self.slot_table) - 1)].long()
        first = (slots + self.slot_base[:, None]) * self.pages_per_block
        pages = first[:, :, None] + torch.arange(self.pages_per_block, device=device)
        return pages.masked_fill(slots[:, :, None] < 0, -1).flatten(1).int()

    def check(self, shapes: Shapes) -> None:
        """Raises ValueError unless the tables fit each other."""
        shapes.check("slot_table", self.slot_table, "entries", torch.int16, torch.int32)
        shapes.check("table_base", self.table_base, "num_seqs", torch.int64)
        shapes.check("slot_base", self.slot_base, "num_seqs", torch.int64)
        check_at_least("pages_per_block", self.pages_per_block, 1)


def paged_index_logits(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_pages: torch.Tensor,
    page_table: torch.Tensor | SlotPages,
    row_seq: torch.Tensor,
    row_end: torch.Tensor,
    layout: IndexLayout,
    out: torch.Tensor | None = None,
    heads: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits of the keys in each row's own pages; scores pooled pages too (a key is then a block).

    Args:
        index_q: [rows, heads, 128] fp32, bf16 or e4m3.
        index_weights: [rows, heads] fp32, all scales but the key's folded in.
        index_pages: [num_pages, page_bytes] uint8, contiguous.
        page_table: [num_seqs, max_pages] int32, physical page of each page, -1 beyond the end; or
            where a block window has them. A negative number, and one that is no page of
            `index_pages`, is of a page that is not there.
        row_seq: [rows] int32, sequence of each row; -1 = padding row.
        row_end: [rows] int32, keys [0, row_end) are scored.
        layout: how index rows are stored.
        out: [rows, max_pages * 64] fp32, contiguous, to write to and return; None = allocate.
        heads: [rows, h] int32, the heads of each row that score, in this order; -1 = any head: it
            may stand in padding rows alone. None = all heads.

    Returns:
        [rows, max_pages * 64] fp32, -inf from row_end on, in pages that are not there and in
        padding rows.
    """
    shapes = _check_queries(index_q, index_weights, layout, heads)
    shapes.check_packed("index_pages", index_pages, "num_pages page_bytes", torch.uint8)
    if isinstance(page_table, SlotPages):
        page_table.check(shapes)
        max_pages = page_table.max_pages
    else:
        shapes.check("page_table", page_table, "num_seqs max_pages", torch.int32)
        max_pages = page_table.shape[1]
    shapes.check("row_seq", row_seq, "rows", torch.int32)
    shapes.check("row_end", row_end, "rows", torch.int32)
    if out is not None:
        shapes.check_packed("out", out, f"rows {max_pages * PAGE_TOKENS}", torch.float32)
    args = index_q, index_weights, index_pages, page_table, row_seq, row_end, layout, out, heads
    if index_q.is_cuda:
        from hisparse_kernels.gpu.index_logits import paged_index_logits_triton

        return paged_index_logits_triton(*args)
    return paged_index_logits_ref(*args)


def paged_index_logits_ref(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_pages: torch.Tensor,
    page_table: torch.Tensor | SlotPages,
    row_seq: torch.Tensor,
    row_end: torch.Tensor,
    layout: IndexLayout,
    out: torch.Tensor | None = None,
    heads: torch.Tensor | None = None,
) -> torch.Tensor:
    if isinstance(page_table, SlotPages):
        page_table = page_table.page_table()
    num_keys = page_table.shape[1] * PAGE_TOKENS
    query, weights = _pick_heads(index_q, index_weights, heads)
    logits = weights.new_full((len(query), num_keys), -torch.inf)
    for seq in row_seq[row_seq >= 0].unique().tolist():
        rows = (row_seq == seq).nonzero()[:, 0]
        end = int(row_end[rows].max())
        for start in range(0, end, _CHUNK_KEYS):
            held = slice(start // PAGE_TOKENS, -(-min(end, start + _CHUNK_KEYS) // PAGE_TOKENS))
            pages = page_table[seq, held]
            is_there = (pages >= 0) & (pages < len(index_pages))
            read = index_pages.index_select(0, pages.where(is_there, 0))
            keys, scale = split_pages(read, layout)
            scores = keys.new_empty(len(rows), keys.shape[0])
            score_keys(query[rows], weights[rows], keys, scale, scores)
            scores.masked_fill_(~is_there.repeat_interleave(PAGE_TOKENS), -torch.inf)
            logits[rows, start : start + keys.shape[0]] = scores
    key = torch.arange(num_keys, device=logits.device)
    logits.masked_fill_(key >= row_end[:, None], -torch.inf)
    return logits if out is None else out.copy_(logits)


def _check_queries(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    layout: IndexLayout,
    picked: torch.Tensor | None,
) -> Shapes:
    shapes = Shapes(page_bytes=layout.page_bytes, row_bytes=layout.row_bytes)
    shapes.check_index_queries(index_q, index_weights)
    if picked is not None:
        shapes.check("heads", picked, "rows h", torch.int32)
        check_at_least("number of heads", picked.shape[1], 1)
    return shapes


def _pick_heads(
    index_q: torch.Tensor, index_weights: torch.Tensor, heads: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries in fp32, and weights, of each row's `heads`."""
    if heads is None:
        return index_q.float(), index_weights
    picked = heads.clamp(min=0).long()
    wide = picked[:, :, None].expand(-1, -1, index_q.shape[2])
    return index_q.float().gather(1, wide), index_weights.gather(1, picked)
