"""Score every key of a range: the flat indexer, for ragged prefill and for paged decode."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.overlap import begin_overlapped, overlap_options
from hisparse_kernels.gpu.packed_logits import packed_kernel, packed_pages_kernel
from hisparse_kernels.gpu.packed_rows import packed_options
from hisparse_kernels.gpu.pipelines import pipeline_of
from hisparse_kernels.gpu.row_runs import mask_rows, rows_that_see
from hisparse_kernels.gpu.score_keys import (
    BLOCK_KEYS,
    codes_and_scales,
    load_keys,
    load_page_keys,
    load_picked_query,
    score_tile,
    tile_options,
    tiles_per_program,
)
from hisparse_kernels.index_logits import SlotPages
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout

_MOST_ROWS = 64  # rows that one program of the ragged kernel scores against its tile
_LEAST_PACKED_ROWS, _MOST_PACKED_ROWS = 8, 256  # the same where several rows share a product
_MIN_SHARING = 8  # rows of a sequence, on average, that make it pay to do so in pages
_MIN_PIPELINE_ROWS = 16  # a pipeline's turn takes 4 or 8
_PROGRAMS = 2048


def index_logits_triton(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_rows: torch.Tensor,
    key_start: torch.Tensor,
    key_end: torch.Tensor,
    layout: IndexLayout,
    out: torch.Tensor | None = None,
    heads: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `index_logits`. A program keeps one tile of keys and goes over a run of rows.

    Rows of few heads go by several at a time, with the same bits.
    """
    rows, num_keys = index_q.shape[0], index_rows.shape[0]
    if out is None:
        out = index_weights.new_empty(rows, num_keys)
    if out.numel() == 0:
        return out
    if heads is None and rows >= _MIN_PIPELINE_ROWS:
        pipeline = pipeline_of("index_logits", index_q, layout)
        if pipeline is not None:
            return pipeline(index_q, index_weights, index_rows, key_start, key_end, layout, out=out)
    num_tiles = triton.cdiv(num_keys, BLOCK_KEYS)
    num_heads = index_q.shape[1] if heads is None else heads.shape[1]
    packed = packed_options(index_q, num_heads, layout)
    least, most_rows = (
        (1, _MOST_ROWS) if packed is None else (_LEAST_PACKED_ROWS, _MOST_PACKED_ROWS)
    )
    rows_per_program = _rows_per_program(rows, num_tiles, least, most_rows)
    arguments = (
        index_q.contiguous(),
        index_weights.contiguous(),
        None if heads is None else heads.contiguous(),
        *codes_and_scales(index_rows.contiguous(), layout),
        key_start.contiguous(),
        key_end.contiguous(),
        out,
        rows,
        num_keys,
        index_q.shape[1],
        rows_per_program,
    )
    grid = num_tiles, triton.cdiv(rows, rows_per_program)
    if packed is None:
        options = tile_options(index_q, layout, num_heads)
        _ragged_kernel[grid](*arguments, MOST_ROWS=most_rows, **options)
    else:
        packed_kernel[grid](*arguments, MOST_ROWS=most_rows, **packed)
    return out


def paged_index_logits_triton(
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
    """See `paged_index_logits`. A program keeps one row and goes over a run of its tiles.

    Where many rows of few heads share a sequence it keeps a tile of keys and goes over the rows.
    """
    rows, max_pages = len(index_q), _max_pages(page_table)
    if out is None:
        out = index_weights.new_empty(rows, max_pages * PAGE_TOKENS)
    if out.numel() == 0:
        return out
    num_tiles = triton.cdiv(max_pages * PAGE_TOKENS, BLOCK_KEYS)
    num_heads = index_q.shape[1] if heads is None else heads.shape[1]
    arguments = (
        index_q.contiguous(),
        index_weights.contiguous(),
        None if heads is None else heads.contiguous(),
        *codes_and_scales(index_pages, layout),
    )
    row_arguments = row_seq.contiguous(), row_end.contiguous(), out
    packed = packed_options(index_q, num_heads, layout)
    num_seqs = len(page_table.slot_base if isinstance(page_table, SlotPages) else page_table)
    if packed is not None and rows >= _MIN_SHARING * num_seqs:
        table = page_table.page_table() if isinstance(page_table, SlotPages) else page_table
        each = _rows_per_program(rows, num_tiles, _LEAST_PACKED_ROWS, _MOST_PACKED_ROWS)
        packed_pages_kernel[num_tiles, triton.cdiv(rows, each)](
            *arguments,
            table.contiguous(),
            *row_arguments,
            rows,
            max_pages,
            len(index_pages),
            index_q.shape[1],
            each,
            MOST_ROWS=_MOST_PACKED_ROWS,
            **packed,
        )
    else:
        tiles = tiles_per_program(rows, num_tiles)
        per_entry = _pages_per_entry(page_table)
        _paged_kernel[rows, triton.cdiv(num_tiles, tiles)](
            *arguments,
            *_table_arguments(page_table),
            *row_arguments,
            max_pages,
            len(index_pages) // per_entry,
            num_tiles,
            tiles,
            index_q.shape[1],
            PAGES_PER_BLOCK=per_entry,
            **tile_options(index_q, layout, num_heads),
            **overlap_options(),
        )
    return out


def _max_pages(page_table: torch.Tensor | SlotPages) -> int:
    return page_table.max_pages if isinstance(page_table, SlotPages) else page_table.shape[1]


def _pages_per_entry(page_table: torch.Tensor | SlotPages) -> int:
    return page_table.pages_per_block if isinstance(page_table, SlotPages) else 1


def _table_arguments(
    page_table: torch.Tensor | SlotPages,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """A page table, or the table of a window and both bases of each sequence."""
    if isinstance(page_table, SlotPages):
        return page_table.slot_table, page_table.table_base, page_table.slot_base
    return page_table.contiguous(), None, None


def _rows_per_program(rows: int, num_tiles: int, least: int, most: int) -> int:
    wanted = triton.cdiv(_PROGRAMS, num_tiles)  # programs over the rows
    return min(most, max(least, int(triton.next_power_of_2(triton.cdiv(rows, wanted)))))


@triton.jit(do_not_specialize=["num_rows", "num_keys", "num_query_heads", "rows_per_program"])
def _ragged_kernel(
    query_ptr,
    weights_ptr,
    heads_ptr,
    codes_ptr,
    scales_ptr,
    start_ptr,
    end_ptr,
    out_ptr,
    num_rows,
    num_keys,
    num_query_heads,
    rows_per_program,
    MOST_ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    first_key = tl.program_id(0) * BLOCK_KEYS
    first_row = tl.program_id(1) * rows_per_program
    last_row = tl.minimum(first_row + rows_per_program, num_rows)
    begin, end = rows_that_see(
        start_ptr, end_ptr, first_row, last_row, first_key, BLOCK_KEYS, MOST_ROWS
    )
    key = first_key + tl.arange(0, BLOCK_KEYS)  # [BLOCK_KEYS]
    held = key < num_keys
    # the last tile reads its last key again and again instead of what lies beyond it
    stored = tl.minimum(key, num_keys - 1).to(tl.int64)
    row_values: tl.constexpr = 132 if HAS_SCALE else 128
    keys = load_keys(codes_ptr + stored * row_values, PRODUCT)
    key_scale = tl.load(scales_ptr + stored * 33 + 32) if HAS_SCALE else 1.0
    mask_rows(out_ptr, num_keys, key, first_row, begin)
    for i in range(end - begin):
        row = begin + i  # a tensor also in the interpreter
        query, weights = load_picked_query(
            query_ptr, weights_ptr, heads_ptr, row, num_query_heads, HEADS, PADDED_HEADS, PRODUCT
        )
        scores = score_tile(
            keys, key_scale, query, weights, HEADS, PADDED_HEADS, BLOCK_KEYS, PRODUCT, WIDEN
        )
        seen = (key >= tl.load(start_ptr + row)) & (key < tl.load(end_ptr + row))
        logits = tl.where(seen, scores, float("-inf"))
        tl.store(out_ptr + row.to(tl.int64) * num_keys + key, logits, mask=held)
    mask_rows(out_ptr, num_keys, key, end, last_row)


@triton.jit(
    do_not_specialize=[
        "max_pages",
        "num_blocks",
        "num_tiles",
        "tiles_per_program",
        "num_query_heads",
    ]
)
def _paged_kernel(
    query_ptr,
    weights_ptr,
    heads_ptr,
    codes_ptr,
    scales_ptr,
    table_ptr,
    table_base_ptr,
    slot_base_ptr,
    seq_ptr,
    end_ptr,
    out_ptr,
    max_pages,
    num_blocks,
    num_tiles,
    tiles_per_program,
    num_query_heads,
    PAGES_PER_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    begin_overlapped()
    row = tl.program_id(0)
    seq = tl.load(seq_ptr + row)
    num_keys = max_pages * 64
    end = tl.where(seq < 0, 0, tl.minimum(tl.load(end_ptr + row), num_keys))
    first_tile = tl.program_id(1) * tiles_per_program
    last_tile = tl.minimum(first_tile + tiles_per_program, num_tiles)
    # at least first_tile: a row that ends before this program's tiles has none to score
    end_tile = tl.maximum(tl.minimum(tl.cdiv(end, BLOCK_KEYS), last_tile), first_tile)
    held_seq = tl.maximum(seq, 0).to(tl.int64)
    if table_base_ptr is None:
        pages_ptr, first_slot = table_ptr + held_seq * max_pages, 0
    else:
        pages_ptr = table_ptr + tl.load(table_base_ptr + held_seq)
        first_slot = tl.load(slot_base_ptr + held_seq)
    out_ptr += row.to(tl.int64) * num_keys
    query, weights = load_picked_query(
        query_ptr, weights_ptr, heads_ptr, row, num_query_heads, HEADS, PADDED_HEADS, PRODUCT
    )
    for tile in range(first_tile, end_tile):
        page0 = _page(pages_ptr, first_slot, 2 * tile, end, num_blocks, PAGES_PER_BLOCK)
        page1 = _page(pages_ptr, first_slot, 2 * tile + 1, end, num_blocks, PAGES_PER_BLOCK)
        adjacent: tl.constexpr = PAGES_PER_BLOCK % 2 == 0
        keys, key_scale = load_page_keys(
            codes_ptr, scales_ptr, page0, page1, adjacent, BLOCK_KEYS, PRODUCT, HAS_SCALE
        )
        scores = score_tile(
            keys, key_scale, query, weights, HEADS, PADDED_HEADS, BLOCK_KEYS, PRODUCT, WIDEN
        )
        key = tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
        # loaded again: kept from above they take 36 registers, and so one of an SM's 4 programs
        block = tl.load(pages_ptr + key // (64 * PAGES_PER_BLOCK), mask=key < end, other=-1)
        seen = (block >= 0) & (block + first_slot < num_blocks)
        tl.store(out_ptr + key, tl.where(seen, scores, float("-inf")), mask=key < num_keys)
    nothing = tl.full([BLOCK_KEYS], float("-inf"), dtype=tl.float32)
    for tile in range(end_tile, last_tile):
        key = tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
        tl.store(out_ptr + key, nothing, mask=key < num_keys)


@triton.jit
def _page(pages_ptr, first_slot, number, end, num_blocks, PAGES_PER_BLOCK: tl.constexpr):
    """Page of the pool; some page for one that is not there, and for one beyond the last key."""
    entry = number // PAGES_PER_BLOCK
    found = tl.load(pages_ptr + entry, mask=number * 64 < end, other=0)
    block = tl.minimum(tl.maximum(found, 0) + first_slot, num_blocks - 1).to(tl.int64)
    return block * PAGES_PER_BLOCK + number % PAGES_PER_BLOCK
