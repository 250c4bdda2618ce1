"""Choose the best blocks of each row by their pooled keys, in one launch where rows are few."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.arrivals import is_last_program
from hisparse_kernels.gpu.block_topm import (
    block_topm_triton,
    choose_blocks,
    look_slots_up,
    slot_arguments,
)
from hisparse_kernels.gpu.group_sums import pooled_entries
from hisparse_kernels.gpu.overlap import begin_overlapped, overlap_options
from hisparse_kernels.gpu.score_keys import (
    BLOCK_KEYS,
    codes_and_scales,
    load_keys_by_row,
    load_query,
    load_table_keys,
    load_tile_pages,
    score_tile,
    tile_options,
    tiles_per_program,
)
from hisparse_kernels.gpu.select import best_columns, row_blocks
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout
from hisparse_kernels.pooled_rows import (
    PooledRows,
    PooledTable,
    pooled_entries_of,
    pooled_pages_of,
)
from hisparse_kernels.select_blocks import COUNTED_ROWS, BlockScratch
from hisparse_kernels.window_slots import WindowSlots

# beyond these a second launch costs less than to choose in the few warps that score best
_FEW_BLOCKS = 2048


def select_blocks_triton(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    pooled_pages: torch.Tensor,
    pooled_table: PooledTable,
    row_seq: torch.Tensor,
    newest_block: torch.Tensor,
    num_kept: int,
    layout: IndexLayout,
    scratch: BlockScratch,
    out: torch.Tensor | None = None,
    slots: WindowSlots | None = None,
) -> torch.Tensor:
    """See `select_blocks`.

    Several programs score a row of few; the last of them to arrive chooses. Of many rows, and of
    rows with many blocks, each has a program of a second launch that chooses.
    """
    rows, max_pages = len(row_seq), pooled_pages_of(pooled_table)
    if out is None:
        out = newest_block.new_empty(rows, num_kept)
    if rows == 0 or max_pages == 0:
        if slots is not None:
            slots.out.fill_(-1)
        return block_topm_triton(scratch.logits, newest_block, num_kept, out)
    row_seq, newest_block = row_seq.contiguous(), newest_block.contiguous()
    num_columns = max_pages * PAGE_TOKENS
    num_tiles = triton.cdiv(num_columns, BLOCK_KEYS)
    tiles = tiles_per_program(rows, num_tiles)
    chooses = rows < COUNTED_ROWS and num_columns <= _FEW_BLOCKS
    codes, scales = codes_and_scales(pooled_pages, layout)
    columns = num_columns if chooses else 1  # who does not choose needs one kernel for all widths
    _select_blocks_kernel[rows, triton.cdiv(num_tiles, tiles)](
        index_q.contiguous(),
        index_weights.contiguous(),
        codes,
        scales,
        pooled_entries_of(pooled_table),
        row_seq,
        newest_block,
        scratch.logits,
        max_pages,
        num_tiles,
        tiles,
        scratch.arrivals,
        num_kept,
        out,
        *slot_arguments(slots if chooses else None),
        CHOOSES=chooses,
        BY_ROW=isinstance(pooled_table, PooledRows),
        KEPT_BLOCK=triton.next_power_of_2(num_kept),
        **row_blocks(columns, num_kept, 4, forced=True),
        **tile_options(index_q, layout),
        **overlap_options(),
    )
    if not chooses:
        choose_blocks(scratch.logits, newest_block, row_seq, num_kept, out, slots)
    return out


@triton.jit(
    do_not_specialize=["max_pages", "num_tiles", "tiles_per_program", "num_kept", "num_slots"]
)
def _select_blocks_kernel(
    query_ptr,
    weights_ptr,
    codes_ptr,
    scales_ptr,
    table_ptr,
    seq_ptr,
    newest_ptr,
    logits_ptr,
    max_pages,
    num_tiles,
    tiles_per_program,
    arrivals_ptr,
    num_kept,
    out_ptr,
    slot_table_ptr,
    table_base_ptr,
    slot_base_ptr,
    slots_ptr,
    num_slots,
    CHOOSES: tl.constexpr,
    BY_ROW: tl.constexpr,
    KEPT_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_BEST: tl.constexpr,
    WRITE_BLOCK: tl.constexpr,
    WARPS: tl.constexpr,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    begin_overlapped()
    row = tl.program_id(0).to(tl.int64)
    seq, newest = tl.load(seq_ptr + row), tl.load(newest_ptr + row)
    num_blocks = max_pages * 64
    end = tl.where(seq < 0, 0, tl.minimum(newest, num_blocks))
    first_tile = tl.program_id(1) * tiles_per_program
    last_tile = tl.minimum(first_tile + tiles_per_program, num_tiles)
    end_tile = tl.maximum(tl.minimum(tl.cdiv(end, BLOCK_KEYS), last_tile), first_tile)
    entries_ptr = pooled_entries(table_ptr, tl.maximum(seq, 0), max_pages, BY_ROW)
    logits_ptr += row * num_blocks
    query, weights = load_query(query_ptr, weights_ptr, row, HEADS, PADDED_HEADS, PRODUCT)
    for tile in range(first_tile, end_tile):
        keys, key_scale = _load_tile(
            codes_ptr,
            scales_ptr,
            entries_ptr,
            tile,
            max_pages,
            BY_ROW,
            BLOCK_KEYS,
            PRODUCT,
            HAS_SCALE,
        )
        scores = score_tile(
            keys, key_scale, query, weights, HEADS, PADDED_HEADS, BLOCK_KEYS, PRODUCT, WIDEN
        )
        block = tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
        scores = tl.where(block < end, scores, float("-inf"))
        tl.store(logits_ptr + block, scores, mask=block < num_blocks)
    for tile in range(end_tile, last_tile):
        block = tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
        nothing = tl.full([BLOCK_KEYS], float("-inf"), dtype=tl.float32)
        tl.store(logits_ptr + block, nothing, mask=block < num_blocks)
    if CHOOSES:  # noqa: SIM102 (the one is for the compiler, the other for the program)
        if is_last_program(arrivals_ptr + row, tl.num_programs(1)):
            out_ptr += row * num_kept
            best_columns(
                logits_ptr,
                1,
                tl.minimum(newest + 1, num_blocks),
                newest,
                num_kept,
                None,
                out_ptr,
                True,
                1,
                BLOCK,
                BLOCK_BEST,
                WRITE_BLOCK,
                WARPS,
            )
            if slot_table_ptr is not None:
                look_slots_up(
                    out_ptr,
                    num_kept,
                    seq,
                    slot_table_ptr,
                    table_base_ptr,
                    slot_base_ptr,
                    slots_ptr + row * num_kept,
                    num_slots,
                    KEPT_BLOCK,
                )


@triton.jit
def _load_tile(
    codes_ptr,
    scales_ptr,
    entries_ptr,
    tile,
    max_pages,
    BY_ROW: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Pooled keys and scales of a tile; -1 beyond the end reads some, which the end then masks."""
    if BY_ROW:
        entry = tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
        row = tl.load(entries_ptr + entry, mask=entry < max_pages * 64, other=0)
        row = tl.maximum(row, 0).to(tl.int64)
        keys, key_scale = load_keys_by_row(codes_ptr, scales_ptr, row, PRODUCT, HAS_SCALE)
    else:
        pages = load_tile_pages(entries_ptr, tile, max_pages)
        keys, key_scale = load_table_keys(
            codes_ptr, scales_ptr, pages, BLOCK_KEYS, PRODUCT, HAS_SCALE
        )
    return keys, key_scale
