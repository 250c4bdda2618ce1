"""Index logits of rows with few heads: a program keeps a tile of keys, rows share products."""

import triton
import triton.language as tl

from hisparse_kernels.gpu.packed_rows import load_packed_queries, score_packed_tile
from hisparse_kernels.gpu.row_runs import mask_rows, rows_that_see, run_of_rows
from hisparse_kernels.gpu.score_keys import load_keys, load_table_keys, load_tile_pages


@triton.jit(do_not_specialize=["num_rows", "num_keys", "num_query_heads", "rows_per_program"])
def packed_kernel(
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
    ROW_HEADS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """Logits of a run of rows at a tile of keys, TILE_ROWS rows in each product."""
    first_key = tl.program_id(0) * BLOCK_KEYS
    first_row = tl.program_id(1) * rows_per_program
    last_row = tl.minimum(first_row + rows_per_program, num_rows)
    begin, end = rows_that_see(
        start_ptr, end_ptr, first_row, last_row, first_key, BLOCK_KEYS, MOST_ROWS
    )
    key = first_key + tl.arange(0, BLOCK_KEYS)  # [BLOCK_KEYS]
    # the last tile reads its last key again and again instead of what lies beyond it
    stored = tl.minimum(key, num_keys - 1).to(tl.int64)
    row_values: tl.constexpr = 132 if HAS_SCALE else 128
    keys = load_keys(codes_ptr + stored * row_values, PRODUCT)
    key_scale = tl.load(scales_ptr + stored * 33 + 32)[:, None] if HAS_SCALE else 1.0
    mask_rows(out_ptr, num_keys, key, first_row, begin)
    _score_run(
        query_ptr,
        weights_ptr,
        heads_ptr,
        start_ptr,
        end_ptr,
        out_ptr,
        keys,
        key_scale,
        key,
        key,
        num_keys,
        num_query_heads,
        begin,
        end,
        HEADS,
        ROW_HEADS,
        TILE_ROWS,
        BLOCK_KEYS,
        PRODUCT,
        WIDEN,
    )
    mask_rows(out_ptr, num_keys, key, end, last_row)


@triton.jit(
    do_not_specialize=[
        "num_rows",
        "max_pages",
        "num_pages",
        "num_query_heads",
        "rows_per_program",
    ]
)
def packed_pages_kernel(
    query_ptr,
    weights_ptr,
    heads_ptr,
    codes_ptr,
    scales_ptr,
    table_ptr,
    seq_ptr,
    end_ptr,
    out_ptr,
    num_rows,
    max_pages,
    num_pages,
    num_query_heads,
    rows_per_program,
    MOST_ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    ROW_HEADS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """`packed_kernel` for keys in pages: a tile of each sequence that the rows have, in turn."""
    tile = tl.program_id(0)
    key = tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    num_keys = max_pages * 64
    begin = tl.program_id(1) * rows_per_program
    last_row = tl.minimum(begin + rows_per_program, num_rows)
    while begin < last_row:
        seq, end, most = run_of_rows(seq_ptr, end_ptr, begin, last_row, MOST_ROWS)
        if most > tile * BLOCK_KEYS:
            pages_ptr = table_ptr + seq.to(tl.int64) * max_pages
            page0, page1 = load_tile_pages(pages_ptr, tile, max_pages)
            # of a page that is not there some other is read, whose keys stand beyond every end
            page0 = tl.where(page0 < num_pages, page0, -1)
            page1 = tl.where(page1 < num_pages, page1, -1)
            is_there = tl.where(tl.arange(0, BLOCK_KEYS) < 64, page0, page1) >= 0
            position = tl.where(is_there, key, 2147483647)
            keys, key_scale = load_table_keys(
                codes_ptr, scales_ptr, (page0, page1), BLOCK_KEYS, PRODUCT, HAS_SCALE
            )
            key_scale = key_scale[:, None] if HAS_SCALE else 1.0
            _score_run(
                query_ptr,
                weights_ptr,
                heads_ptr,
                None,
                end_ptr,
                out_ptr,
                keys,
                key_scale,
                key,
                position,
                num_keys,
                num_query_heads,
                begin,
                end,
                HEADS,
                ROW_HEADS,
                TILE_ROWS,
                BLOCK_KEYS,
                PRODUCT,
                WIDEN,
            )
        else:
            mask_rows(out_ptr, num_keys, key, begin, end)
        begin = end


@triton.jit
def _score_run(
    query_ptr,
    weights_ptr,
    heads_ptr,
    start_ptr,
    end_ptr,
    out_ptr,
    keys,
    key_scale,
    key,
    position,
    num_keys,
    num_query_heads,
    begin,
    end,
    HEADS: tl.constexpr,
    ROW_HEADS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Writes the logits of rows [begin, end) at the tile's keys, in columns `key`.

    Rows see keys by their `position`.
    """
    for i in range(tl.cdiv(end - begin, TILE_ROWS)):
        row = begin + i * TILE_ROWS + tl.arange(0, TILE_ROWS)
        stop = tl.load(end_ptr + row, mask=row < end, other=0)
        seen = position[:, None] < stop[None, :]
        if start_ptr is not None:
            seen &= position[:, None] >= tl.load(start_ptr + row, mask=row < end, other=0)[None, :]
        queries, weights = load_packed_queries(
            query_ptr,
            weights_ptr,
            heads_ptr,
            begin + i * TILE_ROWS,
            end,
            num_query_heads,
            HEADS,
            ROW_HEADS,
            TILE_ROWS,
        )
        scores = score_packed_tile(
            keys, key_scale, queries, weights, ROW_HEADS, TILE_ROWS, BLOCK_KEYS, PRODUCT, WIDEN
        )
        place = row.to(tl.int64)[None, :] * num_keys + key[:, None]
        held = (row < end)[None, :] & (key < num_keys)[:, None]
        tl.store(out_ptr + place, tl.where(seen, scores, float("-inf")), mask=held)
