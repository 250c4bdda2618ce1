"""Score a list of tokens of each row with all heads: the re-ranking of MISA-dagger."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.score_keys import (
    BLOCK_KEYS,
    codes_and_scales,
    load_keys,
    load_query,
    score_tile,
    tile_options,
    tiles_per_program,
)
from hisparse_kernels.layouts import IndexLayout

_SCAN_POSITIONS = 1024


def score_positions_triton(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_pages: torch.Tensor,
    page_table: torch.Tensor,
    row_seq: torch.Tensor,
    positions: torch.Tensor,
    layout: IndexLayout,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `score_positions`. A program keeps one row and goes over a run of its tiles."""
    rows, num_positions = positions.shape
    if out is None:
        out = index_weights.new_empty(rows, num_positions)
    if out.numel() == 0:
        return out
    num_tiles = triton.cdiv(num_positions, BLOCK_KEYS)
    tiles = tiles_per_program(rows, num_tiles)
    _positions_kernel[rows, triton.cdiv(num_tiles, tiles)](
        index_q.contiguous(),
        index_weights.contiguous(),
        *codes_and_scales(index_pages, layout),
        page_table.contiguous(),
        row_seq.contiguous(),
        positions.contiguous(),
        out,
        page_table.shape[1],
        len(index_pages),
        num_positions,
        tiles * BLOCK_KEYS,
        SCAN_POSITIONS=_SCAN_POSITIONS,
        **tile_options(index_q, layout),
    )
    return out


@triton.jit(do_not_specialize=["max_pages", "num_pages", "num_positions", "columns_per_program"])
def _positions_kernel(
    query_ptr,
    weights_ptr,
    codes_ptr,
    scales_ptr,
    table_ptr,
    seq_ptr,
    positions_ptr,
    out_ptr,
    max_pages,
    num_pages,
    num_positions,
    columns_per_program,
    SCAN_POSITIONS: tl.constexpr,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * columns_per_program
    last = tl.minimum(first + columns_per_program, num_positions)
    positions_ptr += row * num_positions
    out_ptr += row * num_positions
    seq = tl.load(seq_ptr + row)
    pages_ptr = table_ptr + tl.maximum(seq, 0).to(tl.int64) * max_pages
    end = tl.where(seq < 0, first, _last_position(positions_ptr, first, last, SCAN_POSITIONS))
    query, weights = load_query(query_ptr, weights_ptr, row, HEADS, PADDED_HEADS, PRODUCT)
    num_scored = tl.cdiv(end - first, BLOCK_KEYS)
    for i in range(num_scored):
        column = first + i * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
        position = tl.load(positions_ptr + column, mask=column < last, other=-1)
        listed = (position >= 0) & (position // 64 < max_pages)
        page = tl.load(pages_ptr + position // 64, mask=listed, other=-1)
        page = tl.where(page < num_pages, page, -1)
        # a token that is not there reads one of some page, which is then masked
        stored, within = tl.maximum(page, 0).to(tl.int64), tl.maximum(position, 0) % 64
        page_values: tl.constexpr = 64 * 132 if HAS_SCALE else 64 * 128
        keys = load_keys(codes_ptr + (stored * page_values + within * 128), PRODUCT)
        if HAS_SCALE:
            key_scale = tl.load(scales_ptr + (stored * (64 * 33) + 64 * 32 + within))
        else:
            key_scale = 1.0
        scores = score_tile(
            keys, key_scale, query, weights, HEADS, PADDED_HEADS, BLOCK_KEYS, PRODUCT, WIDEN
        )
        logits = tl.where(page >= 0, scores, float("-inf"))
        tl.store(out_ptr + column, logits, mask=column < last)
    nothing = tl.full([BLOCK_KEYS], float("-inf"), dtype=tl.float32)
    for start in range(first + num_scored * BLOCK_KEYS, last, BLOCK_KEYS):
        column = start + tl.arange(0, BLOCK_KEYS)
        tl.store(out_ptr + column, nothing, mask=column < last)


@triton.jit
def _last_position(positions_ptr, first, last, SCAN_POSITIONS: tl.constexpr):
    """One past the last column of [first, last) with a position; `first` if there is none."""
    end = first
    for start in range(first, last, SCAN_POSITIONS):
        column = start + tl.arange(0, SCAN_POSITIONS)
        position = tl.load(positions_ptr + column, mask=column < last, other=-1)
        end = tl.maximum(end, tl.max(tl.where(position >= 0, column + 1, 0)))
    return end
