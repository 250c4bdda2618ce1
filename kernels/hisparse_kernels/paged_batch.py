"""Which rows and pages are whose in a packed batch over paged KV rows: spread it out for selection.

Nothing here is trusted but shapes: whatever the numbers are, only entries of these tensors are read
and only pages that they name are given out.
"""

from dataclasses import dataclass

import torch

from hisparse_kernels.shapes import Shapes, check_at_least


@dataclass(frozen=True)
class PagedBatch:
    """Query rows of several sequences, packed, and the pages that hold the sequences' tokens.

    Attributes:
        qo_indptr: [num_seqs + 1] int32, first query row of each sequence, then the end; ascending
            from 0. Rows from the end on are padding.
        kv_lens: [num_seqs] int32, tokens of each sequence, those of its query rows among them.
        kv_pages: page ids: [num_seqs, max_pages] int32; or, with `kv_indptr`, [num_pages] int32,
            packed.
        kv_indptr: [num_seqs + 1] int32, first entry of each sequence in packed `kv_pages`.
        page_tokens: tokens of one page.
        causal: whether a row sees tokens up to its own alone (the query rows are the sequence's
            last tokens); else every token of its sequence.
    """

    qo_indptr: torch.Tensor
    kv_lens: torch.Tensor
    kv_pages: torch.Tensor
    kv_indptr: torch.Tensor | None
    page_tokens: int
    causal: bool

    @property
    def num_seqs(self) -> int:
        """Sequences, those without rows included."""
        return len(self.kv_lens)

    def check(self, shapes: Shapes) -> None:
        """Raises ValueError unless the tensors fit each other, contiguous and on one device."""
        ends = f"{self.num_seqs + 1}"
        shapes.check_packed("kv_lens", self.kv_lens, "num_seqs", torch.int32)
        shapes.check_packed("qo_indptr", self.qo_indptr, ends, torch.int32)
        if self.kv_indptr is None:
            shapes.check_packed("kv_pages", self.kv_pages, "num_seqs max_pages", torch.int32)
        else:
            shapes.check_packed("kv_pages", self.kv_pages, "entries", torch.int32)
            shapes.check_packed("kv_indptr", self.kv_indptr, ends, torch.int32)
        check_at_least("page_tokens", self.page_tokens, 1)


def lay_out_batch(
    batch: PagedBatch,
    max_tokens: int,
    row_seq: torch.Tensor,
    row_pos: torch.Tensor,
    page_table: torch.Tensor | None = None,
) -> None:
    """Writes what selection asks of a batch: each row's sequence and position, and a page table.

    Args:
        batch: the batch.
        max_tokens: most tokens of a sequence; rows that see more become padding.
        row_seq: [rows] int32, contiguous: becomes the row's sequence, -1 = padding row.
        row_pos: [rows] int32, contiguous: becomes the last position that the row sees, -1 = padding
            row, and a row that sees nothing.
        page_table: [num_seqs, max_pages] int32, contiguous: becomes the pages of each sequence, -1
            beyond the end; None = it is not wanted.
    """
    shapes = Shapes(num_seqs=batch.num_seqs)
    batch.check(shapes)
    shapes.check_packed("row_seq", row_seq, "rows", torch.int32)
    shapes.check_packed("row_pos", row_pos, "rows", torch.int32)
    if page_table is not None:
        shapes.check_packed("page_table", page_table, "num_seqs table_pages", torch.int32)
    check_at_least("max_tokens", max_tokens, 1)
    if row_seq.is_cuda:
        from hisparse_kernels.gpu.paged_batch import lay_out_batch_triton

        lay_out_batch_triton(batch, max_tokens, row_seq, row_pos, page_table)
        return
    lay_out_batch_ref(batch, max_tokens, row_seq, row_pos, page_table)


def lay_out_batch_ref(
    batch: PagedBatch,
    max_tokens: int,
    row_seq: torch.Tensor,
    row_pos: torch.Tensor,
    page_table: torch.Tensor | None = None,
) -> None:
    seq, seen = row_spans(batch, len(row_seq))
    is_padding = (seen == 0) | (seen > max_tokens)
    row_seq.copy_(seq.masked_fill(is_padding, -1))
    row_pos.copy_((seen - 1).masked_fill(is_padding, -1))
    if page_table is not None and page_table.numel():
        shape = page_table.shape
        page = torch.arange(shape[1], device=page_table.device).expand(shape)
        seq = torch.arange(shape[0], device=page_table.device)
        is_held = page * batch.page_tokens < batch.kv_lens[:, None]
        page_table.copy_(page_ids(batch, seq, page, is_held))


def row_spans(batch: PagedBatch, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequence [rows] of each row, and the tokens [rows] that it sees, from the first; else 0."""
    row = torch.arange(num_rows, dtype=torch.int32, device=batch.kv_lens.device)
    if batch.num_seqs == 0:
        return torch.zeros_like(row), torch.zeros_like(row)
    ends = batch.qo_indptr[1:]
    seq = torch.searchsorted(ends, row, right=True)  # how many have ended before the row
    is_padding, seq = seq == batch.num_seqs, seq.clamp(max=batch.num_seqs - 1)
    seen = batch.kv_lens[seq]
    if batch.causal:
        seen = seen - (ends[seq] - row) + 1
    return seq, seen.clamp(min=0).masked_fill(is_padding, 0)


def page_ids(
    batch: PagedBatch, seq: torch.Tensor, page: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """Ids [rows, k] int32 of each row's pages `page` [rows, k]; -1 = not wanted, or no such page.

    `seq` [rows] is the sequence of each row, `wanted` [rows, k] bool.
    """
    if batch.kv_pages.numel() == 0:
        return torch.full_like(page, -1, dtype=torch.int32)
    if batch.kv_indptr is None:
        first = seq * batch.kv_pages.shape[1]
        end = first + batch.kv_pages.shape[1]
    else:
        first, end = batch.kv_indptr[seq].long(), batch.kv_indptr[seq + 1].long()
    entry = first[:, None] + page
    limit = end.clamp(max=batch.kv_pages.numel())[:, None]
    is_held = wanted & (entry >= 0) & (entry < limit)
    found = batch.kv_pages.flatten()[torch.where(is_held, entry, 0)]
    return torch.where(is_held, found, -1)
