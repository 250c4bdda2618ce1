"""Spread a packed batch out: a program for each row, and for each piece of the page table."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.paged_batch import PagedBatch

_BLOCK_SEQS = 256  # sequences whose ends a program looks at in one step
_BLOCK_PAGES = 1024


def lay_out_batch_triton(
    batch: PagedBatch,
    max_tokens: int,
    row_seq: torch.Tensor,
    row_pos: torch.Tensor,
    page_table: torch.Tensor | None = None,
) -> None:
    """See `lay_out_batch`. One launch."""
    rows, num_seqs = len(row_seq), batch.num_seqs
    table_pages = 0 if page_table is None else page_table.shape[1]
    pieces = num_seqs * triton.cdiv(table_pages, _BLOCK_PAGES)
    if rows + pieces:
        _lay_out_kernel[(rows + pieces,)](
            *batch_arguments(batch),
            max_tokens,
            rows,
            row_seq,
            row_pos,
            page_table,
            table_pages,
            CAUSAL=batch.causal,
            BLOCK_SEQS=_BLOCK_SEQS,
            BLOCK_PAGES=_BLOCK_PAGES,
            enable_fp_fusion=False,
        )


def batch_arguments(batch: PagedBatch) -> tuple[torch.Tensor | int | None, ...]:
    """A batch as kernels take it: tensors, then the numbers of sequences, entries and tokens."""
    width = 0 if batch.kv_indptr is not None else batch.kv_pages.shape[1]
    tensors = batch.qo_indptr, batch.kv_lens, batch.kv_pages, batch.kv_indptr
    return *tensors, batch.num_seqs, batch.kv_pages.numel(), width, batch.page_tokens


@triton.jit
def row_span(
    qo_indptr_ptr,
    lens_ptr,
    num_seqs,
    row,
    CAUSAL: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Sequence of a row, and the tokens that it sees, from the first; 0 for a padding row."""
    seq = 0
    for first in range(0, num_seqs, BLOCK_SEQS):
        one = first + tl.arange(0, BLOCK_SEQS)
        end = tl.load(qo_indptr_ptr + 1 + one, mask=one < num_seqs, other=2147483647)
        seq += tl.sum((end <= row).to(tl.int32), 0)
    valid = seq < num_seqs
    seen = tl.load(lens_ptr + seq, mask=valid, other=0)
    if CAUSAL:
        seen += row + 1 - tl.load(qo_indptr_ptr + seq + 1, mask=valid, other=0)
    return seq, tl.where(valid, tl.maximum(seen, 0), 0)


@triton.jit
def load_page_ids(
    pages_ptr, indptr_ptr, num_seqs, num_entries, width, seq, page, wanted
) -> tl.tensor:
    """Ids of pages of one sequence; -1 = not wanted, or no such page."""
    if indptr_ptr is not None:
        valid = seq < num_seqs
        first = tl.load(indptr_ptr + seq, mask=valid, other=0).to(tl.int64)
        end = tl.load(indptr_ptr + seq + 1, mask=valid, other=0).to(tl.int64)
        end = tl.minimum(end, num_entries)
    else:
        first = seq.to(tl.int64) * width
        end = first + width
    entry = first + page
    held = wanted & (entry >= 0) & (entry < end)
    return tl.load(pages_ptr + entry, mask=held, other=-1)


@triton.jit(do_not_specialize=["num_seqs", "num_entries", "width", "max_tokens", "num_rows"])
def _lay_out_kernel(
    qo_indptr_ptr,
    lens_ptr,
    pages_ptr,
    indptr_ptr,
    num_seqs,
    num_entries,
    width,
    page_tokens,
    max_tokens,
    num_rows,
    row_seq_ptr,
    row_pos_ptr,
    table_ptr,
    table_pages,
    CAUSAL: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    BLOCK_PAGES: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    if program < num_rows:
        seq, seen = row_span(qo_indptr_ptr, lens_ptr, num_seqs, program, CAUSAL, BLOCK_SEQS)
        valid = (seen > 0) & (seen <= max_tokens)
        tl.store(row_seq_ptr + program, tl.where(valid, seq, -1))
        tl.store(row_pos_ptr + program, tl.where(valid, seen - 1, -1))
    elif table_ptr is not None:
        pieces = tl.cdiv(table_pages, BLOCK_PAGES)
        seq = (program - num_rows) // pieces
        page = (program - num_rows) % pieces * BLOCK_PAGES + tl.arange(0, BLOCK_PAGES)
        # int64: a page's first token may pass 2**31 where the table is wide
        wanted = page.to(tl.int64) * page_tokens < tl.load(lens_ptr + seq)
        found = load_page_ids(
            pages_ptr, indptr_ptr, num_seqs, num_entries, width, seq, page, wanted
        )
        place = seq.to(tl.int64) * table_pages + page
        tl.store(table_ptr + place, found, mask=page < table_pages)
