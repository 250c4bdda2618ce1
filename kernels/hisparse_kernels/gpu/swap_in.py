"""Swap-in in Triton: the programs of a sequence share its misses, which are one run of words."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.overlap import begin_overlapped, overlap_options
from hisparse_kernels.gpu.words import word_dtype
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import MissPlan
from hisparse_kernels.swap_in import FreshRows

_PAGE_TOKENS = tl.constexpr(PAGE_TOKENS)
_TILE_BYTES = 8192  # in flight per program; PCIe wants about 100 KB in flight
_PROGRAMS = 1024  # fill the largest GPUs
_COUNT_BLOCK = tl.constexpr(32)


def swap_in_triton(
    host_rows: torch.Tensor,
    page_table: torch.Tensor,
    plan: MissPlan,
    hot_rows: torch.Tensor,
    fresh: FreshRows | None = None,
    max_programs: int | None = None,
) -> None:
    """See `hisparse_kernels.swap_in.swap_in`; a count of -1, of a refused sequence, is none."""
    known: tuple[torch.Tensor | None, ...] = (None,) * 4
    if fresh is not None:
        known = fresh.rows, fresh.first_item, fresh.first_row, fresh.num_missed
    _copy(_swap_in_kernel, host_rows, page_table, plan, hot_rows, 1, max_programs, *known)


def swap_in_blocks_triton(
    host_pages: torch.Tensor,
    page_table: torch.Tensor,
    plan: MissPlan,
    window_pages: torch.Tensor,
    block_tokens: int,
) -> None:
    """See `hisparse_kernels.swap_in.swap_in_blocks`; a count of -1 is none."""
    pages_per_block = block_tokens // PAGE_TOKENS
    tables = host_pages, page_table, plan, window_pages
    _copy(_swap_in_blocks_kernel, *tables, pages_per_block, None)


def _copy(
    kernel: triton.JITFunction,
    source: torch.Tensor,
    page_table: torch.Tensor,
    plan: MissPlan,
    target: torch.Tensor,
    pages_per_block: int,
    max_programs: int | None,
    *known: torch.Tensor | None,
) -> None:
    num_seqs, cap = plan.miss_item.shape
    if not num_seqs or not cap:
        return
    row_bytes = source.shape[1]
    word, word_bytes = word_dtype(row_bytes)
    tiles = triton.cdiv(cap * pages_per_block * row_bytes, _TILE_BYTES)
    programs = min(tiles, max(1, (max_programs or _PROGRAMS) // num_seqs))
    # what starts early waits in places that were to be left to others
    options = overlap_options() if max_programs is None else {}
    kernel[(num_seqs, programs)](
        source,
        page_table,
        plan.miss_item.contiguous(),
        plan.miss_dst.contiguous(),
        plan.miss_count.contiguous(),
        target,
        *page_table.stride(),
        page_table.shape[1],
        cap,
        pages_per_block,
        *known,
        word,
        row_bytes // word_bytes,
        _TILE_BYTES // word_bytes,
        num_warps=4,
        enable_fp_fusion=False,
        **options,
    )


@triton.jit
def _swap_in_kernel(
    host_ptr,
    table_ptr,
    item_ptr,
    dst_ptr,
    count_ptr,
    hot_ptr,
    seq_stride,
    page_stride,
    max_pages,
    cap,
    pages_per_block,
    fresh_ptr,
    first_item_ptr,
    first_row_ptr,
    missed_ptr,
    WORD: tl.constexpr,
    ROW_WORDS: tl.constexpr,
    TILE: tl.constexpr,
):
    begin_overlapped()
    seq = tl.program_id(0).to(tl.int64)
    start, step = tl.program_id(1) * TILE, tl.num_programs(1) * TILE
    # loaded beside the count: beyond it entries mean nothing, and are not used
    item, dst = _load_entries(item_ptr, dst_ptr, seq, start, cap, ROW_WORDS, TILE)
    count = tl.load(count_ptr + seq)
    if fresh_ptr is not None:
        first_item = tl.load(first_item_ptr + seq)
        first_row = tl.load(first_row_ptr + seq)
    num_words = count * ROW_WORDS
    while start < num_words:
        word = start + tl.arange(0, TILE)
        held, column = word < num_words, word % ROW_WORDS
        is_old = held
        if fresh_ptr is not None:
            is_old = held & (item < first_item)
        page_entry = seq * seq_stride + (item // _PAGE_TOKENS) * page_stride
        page = tl.load(table_ptr + page_entry, mask=is_old, other=0).to(tl.int64)
        row = page * _PAGE_TOKENS + item % _PAGE_TOKENS
        values = _load_host(host_ptr, row * ROW_WORDS + column, is_old, WORD)
        if fresh_ptr is not None:
            own = _own_words(fresh_ptr, first_row + item - first_item, column, ROW_WORDS, WORD)
            values = tl.where(is_old, values, tl.load(own, mask=held & (item >= first_item)))
        hot_word = dst.to(tl.int64) * ROW_WORDS + column
        tl.store(hot_ptr.to(tl.pointer_type(WORD)) + hot_word, values, mask=held)
        start += step
        item, dst = _load_entries(item_ptr, dst_ptr, seq, start, cap, ROW_WORDS, TILE)
    if missed_ptr is not None:  # noqa: SIM102 (the one is for the compiler)
        if tl.program_id(1) == 0:
            missed = _count_fresh(item_ptr + seq * cap, count, first_item)
            tl.store(missed_ptr + seq, missed)


@triton.jit
def _own_words(fresh_ptr, row, column, ROW_WORDS: tl.constexpr, WORD: tl.constexpr):
    return fresh_ptr.to(tl.pointer_type(WORD)) + (row.to(tl.int64) * ROW_WORDS + column)


@triton.jit
def _load_entries(item_ptr, dst_ptr, seq, start, cap, ROW_WORDS: tl.constexpr, TILE: tl.constexpr):
    """Item and destination of each word of a tile, within the room of the plan."""
    rank = (start + tl.arange(0, TILE)) // ROW_WORDS
    entry = seq * cap + rank
    item = tl.load(item_ptr + entry, mask=rank < cap, other=0)
    return item, tl.load(dst_ptr + entry, mask=rank < cap, other=0)


@triton.jit
def _count_fresh(item_ptr, count, first_item):
    """Items of a plan from `first_item` on: it ascends, so they are its last ones."""
    last = tl.load(item_ptr + count - 1, mask=count > 0, other=-1)
    missed = 0
    for start in range(0, last - first_item + 1, _COUNT_BLOCK):
        entry = count - 1 - start - tl.arange(0, _COUNT_BLOCK)
        item = tl.load(item_ptr + entry, mask=entry >= 0, other=-1)
        missed += tl.sum(((entry >= 0) & (item >= first_item)).to(tl.int32))
    return missed


@triton.jit
def _swap_in_blocks_kernel(
    host_ptr,
    table_ptr,
    item_ptr,
    dst_ptr,
    count_ptr,
    window_ptr,
    seq_stride,
    page_stride,
    max_pages,
    cap,
    pages_per_block,
    WORD: tl.constexpr,
    PAGE_WORDS: tl.constexpr,
    TILE: tl.constexpr,
):
    begin_overlapped()
    seq = tl.program_id(0).to(tl.int64)
    num_words = tl.load(count_ptr + seq) * pages_per_block * PAGE_WORDS
    for start in range(tl.program_id(1) * TILE, num_words, tl.num_programs(1) * TILE):
        word = start + tl.arange(0, TILE)
        held = word < num_words
        unit, column = word // PAGE_WORDS, word % PAGE_WORDS
        entry, part = seq * cap + unit // pages_per_block, unit % pages_per_block
        item = tl.load(item_ptr + entry, mask=held, other=0)
        page = item * pages_per_block + part
        held &= page < max_pages
        page_entry = seq * seq_stride + page * page_stride
        source = tl.load(table_ptr + page_entry, mask=held, other=-1).to(tl.int64)
        held &= source >= 0
        values = _load_host(host_ptr, source * PAGE_WORDS + column, held, WORD)
        dst = tl.load(dst_ptr + entry, mask=held, other=0).to(tl.int64) * pages_per_block + part
        target_ptr = window_ptr.to(tl.pointer_type(WORD))
        tl.store(target_ptr + dst * PAGE_WORDS + column, values, mask=held)


@triton.jit
def _load_host(host_ptr, offset, mask, WORD: tl.constexpr):
    # through L1, though nobody reads a row twice: past it, the link carries 5 % less
    return tl.load(host_ptr.to(tl.pointer_type(WORD)) + offset, mask=mask)
