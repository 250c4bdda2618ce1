"""Score the tokens of each row's own blocks: the second half of hierarchical selection."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.score_keys import (
    BLOCK_KEYS,
    load_keys_of_two,
    load_page_keys,
    load_query,
    score_tile,
    split_keys,
    tile_options,
    tiles_per_program,
)
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout
from hisparse_kernels.refine_logits import HostBlocks

_SCAN_ENTRIES = 128


def refine_logits_triton(
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
    """See `refine_logits`. A program keeps one row and goes over a run of its tiles."""
    rows, num_entries = block_slots.shape
    if rows == 0 or num_entries == 0:
        return out
    num_tiles = triton.cdiv(num_entries * block_tokens, BLOCK_KEYS)
    tiles = tiles_per_program(rows, num_tiles)
    codes, scales = split_keys(index_pages, layout)
    _refine_kernel[rows, triton.cdiv(num_tiles, tiles)](
        index_q.contiguous(),
        index_weights.contiguous(),
        codes,
        scales,
        block_slots.contiguous(),
        block_ids.contiguous(),
        row_pos.contiguous(),
        out,
        num_entries,
        num_tiles,
        tiles,
        *_host_arguments(host, layout),
        PAGES_PER_BLOCK=block_tokens // PAGE_TOKENS,
        SCAN_ENTRIES=_SCAN_ENTRIES,
        **tile_options(index_q, layout),
    )
    return out


def _host_arguments(host: HostBlocks | None, layout: IndexLayout) -> tuple[object, ...]:
    """Codes, scales, page table, its columns, sequence of each row; all None without a host."""
    if host is None:
        return (None,) * 5
    table = host.page_table.contiguous()
    return *split_keys(host.pages, layout), table, table.shape[1], host.row_seq.contiguous()


@triton.jit(do_not_specialize=["num_entries", "num_tiles", "tiles_per_program", "max_host_pages"])
def _refine_kernel(
    query_ptr,
    weights_ptr,
    codes_ptr,
    scales_ptr,
    slots_ptr,
    ids_ptr,
    pos_ptr,
    out_ptr,
    num_entries,
    num_tiles,
    tiles_per_program,
    host_codes_ptr,
    host_scales_ptr,
    host_table_ptr,
    max_host_pages,
    host_seq_ptr,
    PAGES_PER_BLOCK: tl.constexpr,
    SCAN_ENTRIES: tl.constexpr,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first_tile = tl.program_id(1) * tiles_per_program
    last_tile = tl.minimum(first_tile + tiles_per_program, num_tiles)
    row_pos = tl.load(pos_ptr + row)
    slots_ptr += row * num_entries
    ids_ptr += row * num_entries
    out_ptr += row * num_entries * (PAGES_PER_BLOCK * 64)
    # the row's part of the host's page table and its columns; None and -1 where nothing is read
    table_ptr, max_pages = host_table_ptr, -1
    if host_table_ptr is not None:
        seq = tl.load(host_seq_ptr + row)
        max_pages = tl.where(seq >= 0, max_host_pages, -1)
        table_ptr += tl.maximum(seq, 0).to(tl.int64) * max_host_pages
    begin, end, any_later = _tiles_to_score(
        slots_ptr,
        ids_ptr,
        row_pos,
        num_entries,
        max_pages,
        first_tile,
        last_tile,
        PAGES_PER_BLOCK,
        SCAN_ENTRIES,
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
            tile,
            PAGES_PER_BLOCK,
            BLOCK_KEYS,
        )
        if host_table_ptr is None:
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
    if any_later:  # else the other tiles hold only blocks to leave alone
        for tile in range(first_tile, begin):
            _mask_tile(
                slots_ptr,
                ids_ptr,
                table_ptr,
                num_entries,
                max_pages,
                out_ptr,
                tile,
                PAGES_PER_BLOCK,
                BLOCK_KEYS,
            )
        for tile in range(end, last_tile):
            _mask_tile(
                slots_ptr,
                ids_ptr,
                table_ptr,
                num_entries,
                max_pages,
                out_ptr,
                tile,
                PAGES_PER_BLOCK,
                BLOCK_KEYS,
            )


@triton.jit
def _mask_tile(
    slots_ptr,
    ids_ptr,
    table_ptr,
    num_entries,
    max_pages,
    out_ptr,
    tile,
    PAGES_PER_BLOCK: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """-inf in the held columns of a tile that nobody sees."""
    _, _, held, _ = _tile_pages(
        slots_ptr,
        ids_ptr,
        table_ptr,
        0,
        num_entries,
        max_pages,
        tile,
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
    PAGES_PER_BLOCK: tl.constexpr,
    SCAN_ENTRIES: tl.constexpr,
):
    """The shortest run of tiles with all blocks to score, and whether some held block is later.

    A stream through the window holds a run of the row's blocks at a time: the others cost nothing.
    """
    first_entry = 2 * first_tile // PAGES_PER_BLOCK
    last_entry = tl.minimum(tl.cdiv(2 * last_tile, PAGES_PER_BLOCK), num_entries)
    begin, end, any_later = last_entry, first_entry, 0
    for start in range(first_entry, last_entry, SCAN_ENTRIES):
        entry = start + tl.arange(0, SCAN_ENTRIES)
        slot = tl.load(slots_ptr + entry, mask=entry < last_entry, other=-1)
        block = tl.load(ids_ptr + entry, mask=entry < last_entry, other=-1)
        held = (slot >= 0) | ((block >= 0) & (max_pages >= 0))
        first_pos = block * (PAGES_PER_BLOCK * 64)
        scored = held & (first_pos <= row_pos)
        begin = tl.minimum(begin, tl.min(tl.where(scored, entry, last_entry)))
        end = tl.maximum(end, tl.max(tl.where(scored, entry + 1, first_entry)))
        any_later |= tl.max((held & (first_pos > row_pos)).to(tl.int32))
    begin_tile = tl.maximum(begin * PAGES_PER_BLOCK // 2, first_tile)
    end_tile = tl.minimum(tl.cdiv(end * PAGES_PER_BLOCK, 2), last_tile)
    return begin_tile, tl.maximum(end_tile, begin_tile), any_later


@triton.jit
def _tile_pages(
    slots_ptr,
    ids_ptr,
    table_ptr,
    row_pos,
    num_entries,
    max_pages,
    tile,
    PAGES_PER_BLOCK: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Pages of a tile's two halves; [BLOCK_KEYS] which columns are held, and visible."""
    key = tl.arange(0, BLOCK_KEYS)
    half0, held0, pos0 = _half_page(
        slots_ptr, ids_ptr, table_ptr, num_entries, max_pages, 2 * tile, PAGES_PER_BLOCK
    )
    half1, held1, pos1 = _half_page(
        slots_ptr, ids_ptr, table_ptr, num_entries, max_pages, 2 * tile + 1, PAGES_PER_BLOCK
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
    column_page,
    PAGES_PER_BLOCK: tl.constexpr,
):
    """Page of 64 columns (any page where none is held) and whether it is the host's.

    Returns:
        Both, whether the columns are held (0, 1), and their first position.
    """
    entry, within = column_page // PAGES_PER_BLOCK, column_page % PAGES_PER_BLOCK
    slot = tl.load(slots_ptr + entry, mask=entry < num_entries, other=-1)
    block = tl.load(ids_ptr + entry, mask=entry < num_entries, other=-1)
    page = tl.maximum(slot, 0).to(tl.int64) * PAGES_PER_BLOCK + within
    held, number = slot >= 0, block * PAGES_PER_BLOCK + within
    from_host, first_pos = slot < 0, number * 64
    if table_ptr is not None:
        from_host = (slot < 0) & (block >= 0) & (max_pages >= 0)
        is_listed = from_host & (number < max_pages)
        found = tl.load(table_ptr + number, mask=is_listed, other=-1)
        page = tl.where(from_host, tl.maximum(found, 0).to(tl.int64), page)
        held |= from_host
        # of a page that is not there no token is visible: it lies beyond every position
        first_pos = tl.where(from_host & (found < 0), 2147483584, first_pos)
    return (page, from_host), held.to(tl.int32), first_pos
