"""Score a run of tiles of one row's own blocks: the body of `refine_logits` and `select_tokens`."""

import triton
import triton.language as tl

from hisparse_kernels.gpu.score_keys import (
    load_keys_of_two,
    load_page_keys,
    load_query,
    score_tile,
)

_SCAN_ENTRIES = tl.constexpr(128)


@triton.jit
def refine_row(
    query_ptr,
    weights_ptr,
    codes_ptr,
    scales_ptr,
    slots_ptr,
    ids_ptr,
    row,
    row_pos,
    out_ptr,
    num_entries,
    first_tile,
    last_tile,
    host_codes_ptr,
    host_scales_ptr,
    table_ptr,
    max_pages,
    num_host_pages,
    WRITE_ALL: tl.constexpr,
    PAGES_PER_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """Writes the logits of the tiles [first_tile, last_tile) of the row at `out_ptr`.

    Columns of no block are left alone; with WRITE_ALL they become -inf, but of a row whose first
    block is -1: it has none, and nobody looks at its logits.
    """
    begin, end, any_else = _tiles_to_score(
        slots_ptr,
        ids_ptr,
        row_pos,
        num_entries,
        max_pages,
        first_tile,
        last_tile,
        WRITE_ALL,
        PAGES_PER_BLOCK,
    )
    query, weights = load_query(query_ptr, weights_ptr, row, HEADS, PADDED_HEADS, PRODUCT)
    for tile in range(begin, end):
        half0, half1, held, visible = _tile_pages(
            slots_ptr,
            ids_ptr,
            table_ptr,
            row_pos,
            num_entries,
            max_pages,
            num_host_pages,
            tile,
            WRITE_ALL,
            PAGES_PER_BLOCK,
            BLOCK_KEYS,
        )
        if table_ptr is None:
            keys, key_scale = load_page_keys(
                codes_ptr,
                scales_ptr,
                half0[0],
                half1[0],
                PAGES_PER_BLOCK % 2 == 0,
                BLOCK_KEYS,
                PRODUCT,
                HAS_SCALE,
            )
        else:
            keys, key_scale = load_keys_of_two(
                tl.where(half0[1], host_codes_ptr, codes_ptr),
                tl.where(half0[1], host_scales_ptr, scales_ptr),
                half0[0],
                tl.where(half1[1], host_codes_ptr, codes_ptr),
                tl.where(half1[1], host_scales_ptr, scales_ptr),
                half1[0],
                BLOCK_KEYS,
                PRODUCT,
                HAS_SCALE,
            )
        scores = score_tile(
            keys, key_scale, query, weights, HEADS, PADDED_HEADS, BLOCK_KEYS, PRODUCT, WIDEN
        )
        column = tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
        tl.store(out_ptr + column, tl.where(visible, scores, float("-inf")), mask=held)
    if WRITE_ALL:
        any_else &= (tl.load(ids_ptr) >= 0).to(tl.int32)
    if any_else:  # tiles that nobody sees, before and after the others
        for skipped in range(first_tile, last_tile - (end - begin)):
            tile = tl.where(skipped < begin, skipped, skipped + end - begin)
            _, _, held, _ = _tile_pages(
                slots_ptr,
                ids_ptr,
                table_ptr,
                row_pos,
                num_entries,
                max_pages,
                num_host_pages,
                tile,
                WRITE_ALL,
                PAGES_PER_BLOCK,
                BLOCK_KEYS,
            )
            column = tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
            nothing = tl.full([BLOCK_KEYS], float("-inf"), dtype=tl.float32)
            tl.store(out_ptr + column, nothing, mask=held)


@triton.jit
def _tiles_to_score(
    slots_ptr,
    ids_ptr,
    row_pos,
    num_entries,
    max_pages,
    first_tile,
    last_tile,
    WRITE_ALL: tl.constexpr,
    PAGES_PER_BLOCK: tl.constexpr,
):
    """The shortest run of tiles with all blocks to score, and whether others are to be written.

    A stream through the window holds a run of the row's blocks at a time: the others cost nothing.
    """
    first_entry = 2 * first_tile // PAGES_PER_BLOCK
    last_entry = tl.minimum(tl.cdiv(2 * last_tile, PAGES_PER_BLOCK), num_entries)
    begin, end, any_else = last_entry, first_entry, 0
    for start in range(first_entry, last_entry, _SCAN_ENTRIES):
        entry = start + tl.arange(0, _SCAN_ENTRIES)
        is_entry = entry < last_entry
        block = tl.load(ids_ptr + entry, mask=is_entry, other=-1)
        slot = tl.load(slots_ptr + entry, mask=is_entry & (block >= 0), other=-1)
        held = (slot >= 0) | ((block >= 0) & (max_pages >= 0))
        first_pos = block * (PAGES_PER_BLOCK * 64)
        scored = held & (first_pos <= row_pos)
        begin = tl.minimum(begin, tl.min(tl.where(scored, entry, last_entry)))
        end = tl.maximum(end, tl.max(tl.where(scored, entry + 1, first_entry)))
        written = is_entry if WRITE_ALL else held
        any_else |= tl.max((written & ~scored).to(tl.int32))
    begin_tile = tl.maximum(begin * PAGES_PER_BLOCK // 2, first_tile)
    end_tile = tl.minimum(tl.cdiv(end * PAGES_PER_BLOCK, 2), last_tile)
    return begin_tile, tl.maximum(end_tile, begin_tile), any_else


@triton.jit
def _tile_pages(
    slots_ptr,
    ids_ptr,
    table_ptr,
    row_pos,
    num_entries,
    max_pages,
    num_host_pages,
    tile,
    WRITE_ALL: tl.constexpr,
    PAGES_PER_BLOCK: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Pages of a tile's two halves; [BLOCK_KEYS] which columns are written, and visible."""
    key = tl.arange(0, BLOCK_KEYS)
    half0, held0, pos0 = _half_page(
        slots_ptr,
        ids_ptr,
        table_ptr,
        num_entries,
        max_pages,
        num_host_pages,
        2 * tile,
        WRITE_ALL,
        PAGES_PER_BLOCK,
    )
    half1, held1, pos1 = _half_page(
        slots_ptr,
        ids_ptr,
        table_ptr,
        num_entries,
        max_pages,
        num_host_pages,
        2 * tile + 1,
        WRITE_ALL,
        PAGES_PER_BLOCK,
    )
    held = tl.where(key < 64, held0, held1) != 0
    return half0, half1, held, tl.where(key < 64, pos0, pos1) + key % 64 <= row_pos


@triton.jit
def _half_page(
    slots_ptr,
    ids_ptr,
    table_ptr,
    num_entries,
    max_pages,
    num_host_pages,
    column_page,
    WRITE_ALL: tl.constexpr,
    PAGES_PER_BLOCK: tl.constexpr,
):
    """Page of 64 columns (any page where none is held) and whether it is the host's.

    Returns:
        Both, whether the columns are written (0, 1), and their first position.
    """
    nowhere: tl.constexpr = 2147483584  # the last page's: beyond every position
    entry, within = column_page // PAGES_PER_BLOCK, column_page % PAGES_PER_BLOCK
    is_entry = entry < num_entries
    block = tl.load(ids_ptr + entry, mask=is_entry, other=-1)
    slot = tl.load(slots_ptr + entry, mask=is_entry & (block >= 0), other=-1)
    page = tl.maximum(slot, 0).to(tl.int64) * PAGES_PER_BLOCK + within
    held, number = slot >= 0, block * PAGES_PER_BLOCK + within
    from_host, first_pos = slot < 0, number * 64
    if table_ptr is not None:
        from_host = (slot < 0) & (block >= 0) & (max_pages >= 0)
        is_listed = from_host & (number < max_pages)
        found = tl.load(table_ptr + number, mask=is_listed, other=-1)
        found = tl.where(found < num_host_pages, found, -1)
        page = tl.where(from_host, tl.maximum(found, 0).to(tl.int64), page)
        held |= from_host
        # of a page that is not there no token is visible
        first_pos = tl.where(from_host & (found < 0), nowhere, first_pos)
    if WRITE_ALL:
        first_pos = tl.where(held, first_pos, nowhere)
        held = is_entry
    return (page, from_host), held.to(tl.int32), first_pos
