"""Pooled keys in Triton: one program sums one block's rows, in ascending order."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.e4m3 import from_e4m3
from hisparse_kernels.gpu.index_rows import store_in_pages, stored_key, stored_words, write_row
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS, IndexLayout

_DIM = tl.constexpr(INDEX_DIM)
_PAGE_TOKENS = tl.constexpr(PAGE_TOKENS)
_ROWS_AT_ONCE = tl.constexpr(16)  # loads in flight; the additions still take turns


def append_index_rows_triton(
    rows: torch.Tensor,
    row_ids: torch.Tensor,
    index_pages: torch.Tensor,
    row_seq: torch.Tensor,
    row_pos: torch.Tensor,
    open_sums: torch.Tensor,
    state_rows: torch.Tensor,
    pooled_pages: torch.Tensor,
    pooled_base: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
) -> None:
    """See `hisparse_kernels.pool_keys.append_index_rows`."""
    num_rows = rows.shape[0]
    if num_rows:
        _append_kernel[(num_rows,)](
            rows.contiguous(),
            row_ids.contiguous(),
            index_pages,
            row_seq.contiguous(),
            row_pos.contiguous(),
            open_sums,
            state_rows.contiguous(),
            pooled_pages,
            pooled_base.contiguous(),
            num_rows,
            block_tokens,
            layout.name == "fp8",
            num_warps=1,
            enable_fp_fusion=False,
        )


def rebuild_pooled_keys_triton(
    index_pages: torch.Tensor,
    page_table: torch.Tensor,
    lengths: torch.Tensor,
    open_sums: torch.Tensor,
    state_rows: torch.Tensor,
    pooled_pages: torch.Tensor,
    pooled_base: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
) -> None:
    """See `hisparse_kernels.pool_keys.rebuild_pooled_keys`."""
    num_seqs, max_pages = page_table.shape
    # A full table's open block is empty, and its sum still becomes 0.
    num_blocks = max_pages * PAGE_TOKENS // block_tokens + 1
    if num_seqs:
        _rebuild_kernel[(num_blocks, num_seqs)](
            index_pages,
            page_table,
            lengths.contiguous(),
            open_sums,
            state_rows.contiguous(),
            pooled_pages,
            pooled_base.contiguous(),
            *page_table.stride(),
            block_tokens,
            False,
            layout.name == "fp8",
            num_warps=1,
            enable_fp_fusion=False,
        )


def resum_open_blocks_triton(
    index_pages: torch.Tensor,
    page_table: torch.Tensor,
    lengths: torch.Tensor,
    open_sums: torch.Tensor,
    state_rows: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
) -> None:
    """See `hisparse_kernels.pool_keys.resum_open_blocks`."""
    num_seqs = page_table.shape[0]
    if num_seqs:
        _rebuild_kernel[(1, num_seqs)](
            index_pages,
            page_table,
            lengths.contiguous(),
            open_sums,
            state_rows.contiguous(),
            None,
            None,
            *page_table.stride(),
            block_tokens,
            True,
            layout.name == "fp8",
            num_warps=1,
            enable_fp_fusion=False,
        )


@triton.jit
def _append_kernel(
    rows_ptr,
    row_ids_ptr,
    pages_ptr,
    seq_ptr,
    pos_ptr,
    open_ptr,
    state_ptr,
    pooled_ptr,
    base_ptr,
    num_rows,
    block_tokens,
    FP8: tl.constexpr,
):
    row = tl.program_id(0)
    one = row + tl.arange(0, 1).to(tl.int64)
    write_row(pages_ptr, tl.load(row_ids_ptr + one), rows_ptr, one, FP8)
    seq, pos = tl.load(seq_ptr + row), tl.load(pos_ptr + row)
    is_head = tl.load(seq_ptr + row - 1, mask=row > 0, other=-1) != seq
    if (seq >= 0) & (is_head | (pos % block_tokens == 0)):
        pooled_row = tl.load(base_ptr + seq) + pos // block_tokens
        open_ptr += tl.load(state_ptr + seq) * _DIM
        part_end = tl.minimum(row + block_tokens - pos % block_tokens, num_rows)
        count = count_rows(seq_ptr, seq, row, part_end, 128)
        closes = pos % block_tokens + count == block_tokens
        zeros = tl.zeros([_DIM], tl.float32)
        # The head of a sequence alone touches its open sum: what it reads cannot have been
        # overwritten by the program of the sequence's last part.
        if is_head:
            dim = tl.arange(0, _DIM)
            total = zeros
            if pos % block_tokens != 0:
                total = tl.load(open_ptr + dim)
            total = _sum_packed(total, rows_ptr, row, count, FP8)
            if closes:
                store_mean(pooled_ptr, pooled_row, total, block_tokens, FP8)
                later = count_rows(seq_ptr, seq, row + count, num_rows, 1024)
                open_rows = later % block_tokens
                first = row + count + later - open_rows
                total = _sum_packed(zeros, rows_ptr, first, open_rows, FP8)
            tl.store(open_ptr + dim, total)
        elif closes:
            total = _sum_packed(zeros, rows_ptr, row, count, FP8)
            store_mean(pooled_ptr, pooled_row, total, block_tokens, FP8)


@triton.jit
def _rebuild_kernel(
    pages_ptr,
    table_ptr,
    lengths_ptr,
    open_ptr,
    state_ptr,
    pooled_ptr,
    base_ptr,
    seq_stride,
    page_stride,
    block_tokens,
    OPEN_ONLY: tl.constexpr,
    FP8: tl.constexpr,
):
    seq = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths_ptr + seq)
    block = length // block_tokens if OPEN_ONLY else tl.program_id(0)
    first = block * block_tokens
    if (length >= 0) & (first <= length):
        count = tl.minimum(block_tokens, length - first)
        total = tl.zeros([_DIM], tl.float32)
        for start in range(0, count, _PAGE_TOKENS):
            page_entry = (first + start) // _PAGE_TOKENS
            page = tl.load(table_ptr + seq * seq_stride + page_entry * page_stride).to(tl.int64)
            codes_at, scale_at = stored_words(page * _PAGE_TOKENS, FP8)
            held = tl.minimum(count - start, _PAGE_TOKENS)
            row_words: tl.constexpr = _DIM // 4 if FP8 else _DIM
            total = sum_rows(total, pages_ptr, codes_at, scale_at, row_words, 1, held, FP8)
        if count == block_tokens:
            if not OPEN_ONLY:
                store_mean(pooled_ptr, tl.load(base_ptr + seq) + block, total, block_tokens, FP8)
        else:
            state = tl.load(state_ptr + seq)
            tl.store(open_ptr + state * _DIM + tl.arange(0, _DIM), total)


@triton.jit
def count_rows(seq_ptr, seq, first, end, TILE: tl.constexpr) -> tl.tensor:
    """Rows of `seq` in [first, end)."""
    count = 0
    for start in range(first, end, TILE):
        row = start + tl.arange(0, TILE)
        found = tl.load(seq_ptr + row, mask=row < end, other=-1) == seq
        count += tl.sum(found.to(tl.int32))
    return count


@triton.jit
def _sum_packed(total, rows_ptr, first, count, FP8: tl.constexpr):
    """`total` plus packed rows [first, first + count), one after the other."""
    stride: tl.constexpr = _DIM // 4 + 1 if FP8 else _DIM
    codes_at = first.to(tl.int64) * stride
    return sum_rows(total, rows_ptr, codes_at, codes_at + _DIM // 4, stride, stride, count, FP8)


@triton.jit
def sum_rows(
    total,
    stored_ptr,
    codes_at,
    scale_at,
    CODES_STRIDE: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
    count,
    FP8: tl.constexpr,
) -> tl.tensor:
    """`total` plus `count` rows, of which the first lies at those 4-byte words."""
    float_ptr = stored_ptr.to(tl.pointer_type(tl.float32))
    dim = tl.arange(0, _DIM)
    for start in range(0, count, _ROWS_AT_ONCE):
        for ahead in tl.static_range(_ROWS_AT_ONCE):
            row = start + ahead
            held = row + 0 * dim < count  # a vector: the interpreter refuses to spread a scalar
            # The zeros of rows beyond the count change no bit: no sum is ever -0.
            if FP8:
                codes_ptr = stored_ptr + (codes_at + row * CODES_STRIDE) * 4
                codes = tl.load(codes_ptr + dim, mask=held, other=0)
                scale_ptr = float_ptr + scale_at + row * SCALE_STRIDE
                total += from_e4m3(codes) * tl.load(scale_ptr, mask=row < count, other=0.0)
            else:
                key_ptr = float_ptr + codes_at + row * CODES_STRIDE
                total += tl.load(key_ptr + dim, mask=held, other=0.0)
    return total


@triton.jit
def store_mean(pooled_ptr, pooled_row, total, block_tokens, FP8: tl.constexpr) -> None:
    """Closes a block: its mean key becomes row `pooled_row` (int64) of the pooled pages."""
    stored, scale = stored_key(mean_key(total, block_tokens), FP8)
    store_in_pages(pooled_ptr, pooled_row, stored, scale, FP8)


@triton.jit
def mean_key(total, block_tokens) -> tl.tensor:
    """The mean [128] fp32 of a full block whose keys sum to `total`."""
    return tl.div_rn(total, block_tokens.to(tl.float32))
