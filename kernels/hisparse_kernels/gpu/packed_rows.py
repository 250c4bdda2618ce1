"""Score a tile of keys with several rows of few heads at once: their heads fill one product.

A row and a key get the bits that `score_keys` gives them: a dot's bits depend on the dot alone, and
a row's heads are summed in the same order. A row takes a group of 8 or 16 columns here, where there
it takes at least 16; columns beyond its heads are zeros in both. (Only on sm_100 with Triton 3.6,
whose sums within a thread are not a tree, the order is another one, and so may the last bit be.)
"""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.score_keys import tile_options
from hisparse_kernels.layouts import IndexLayout

MOST_PACKED_HEADS = 16
_COLUMNS = 64


def packed_options(
    index_q: torch.Tensor, num_heads: int, layout: IndexLayout
) -> dict[str, object] | None:
    """Compile-time values of the tile; None where one row fills it or products are in fp32."""
    options = tile_options(index_q, layout, num_heads)
    if num_heads > MOST_PACKED_HEADS or options["PRODUCT"] == "fp32":
        return None
    row_heads = max(8, triton.next_power_of_2(num_heads))
    del options["PADDED_HEADS"]
    return options | {
        "ROW_HEADS": row_heads,
        "TILE_ROWS": _COLUMNS // row_heads,
        "maxnreg": 255,  # without a bound ptxas spills to fit more programs on an SM
    }


@triton.jit
def load_packed_queries(
    query_ptr,
    weights_ptr,
    heads_ptr,
    first_row,
    end_row,
    num_query_heads,
    HEADS: tl.constexpr,
    ROW_HEADS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Heads [columns, 128] and weights [columns] of TILE_ROWS rows, zeros from `end_row` on.

    Of each eight columns of a wgmma result a thread holds two, the same two in each eight: these
    are given to one row, so that its sum stays in a thread.
    """
    column = tl.arange(0, TILE_ROWS * ROW_HEADS)
    pair = column // 8
    row_in_tile = column % 8 // 2 * (TILE_ROWS // 4) + pair // (ROW_HEADS // 2)
    head = pair % (ROW_HEADS // 2) * 2 + column % 2
    row = first_row + row_in_tile
    real = (row < end_row) & (head < HEADS)
    place = row.to(tl.int64) * HEADS + head
    if heads_ptr is not None:
        picked = tl.load(heads_ptr + place, mask=real, other=0)
        place = row.to(tl.int64) * num_query_heads + tl.maximum(picked, 0)
    weights = tl.load(weights_ptr + place, mask=real, other=0.0)
    values_ptr = (query_ptr + place * 128)[:, None] + tl.arange(0, 128)[None, :]
    return tl.load(values_ptr, mask=real[:, None], other=0.0), weights


@triton.jit
def score_packed_tile(
    keys,
    key_scale,
    queries,
    weights,
    ROW_HEADS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    WIDEN: tl.constexpr,
) -> tl.tensor:
    """Scores [BLOCK_KEYS, TILE_ROWS] fp32; see `score_tile`."""
    if PRODUCT == "bf16":  # every e4m3 value is a bf16 value
        if WIDEN:
            dots = tl.dot(keys.to(tl.float32), tl.trans(queries.to(tl.float32)))
        else:
            dots = tl.dot(keys.to(tl.bfloat16), tl.trans(queries))
    else:
        dots = tl.dot(keys, tl.trans(queries))
    values = _by_row(tl.maximum(dots, 0.0), BLOCK_KEYS, ROW_HEADS, TILE_ROWS)
    weights = _by_row(weights[None, :], 1, ROW_HEADS, TILE_ROWS)
    sums = _sum_of_fours(values, weights, ROW_HEADS, TILE_ROWS, BLOCK_KEYS)
    if ROW_HEADS == 8:  # eight heads of zeros are added elsewhere, which leaves no -0.0
        sums += 0.0
    return sums * key_scale


@triton.jit
def _by_row(
    values, KEYS: tl.constexpr, ROW_HEADS: tl.constexpr, TILE_ROWS: tl.constexpr
) -> tl.tensor:
    """[KEYS, columns] as pairs of neighbouring heads: [KEYS, rows, heads / 2, 2]."""
    split = tl.reshape(values, [KEYS, TILE_ROWS // 4, ROW_HEADS // 2, 4, 2])
    joined = tl.permute(split, (0, 3, 1, 2, 4))
    return tl.reshape(joined, [KEYS, TILE_ROWS, ROW_HEADS // 2, 2])


@triton.jit
def _sum_of_fours(
    values,
    weights,
    ROW_HEADS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
) -> tl.tensor:
    """sum_j weights[j] * values[j] of each row in the order of `_head_sum`: [keys, rows]."""
    if ROW_HEADS == 8:
        v0, v1 = tl.split(values)
        w0, w1 = tl.split(weights)
        sums = tl.fma(v1, w1, v0 * w0)
    else:
        v0, v1, v8, v9 = _quarters(values, BLOCK_KEYS, TILE_ROWS)
        w0, w1, w8, w9 = _quarters(weights, 1, TILE_ROWS)
        sums = tl.fma(v9, w9, tl.fma(v8, w8, tl.fma(v1, w1, v0 * w0)))
    fours = tl.reshape(sums, [BLOCK_KEYS, TILE_ROWS, 2, 2])
    first, second = tl.split(tl.permute(fours, (0, 1, 3, 2)))
    even, odd = tl.split(first + second)
    return even + odd


@triton.jit
def _quarters(pairs, ROWS: tl.constexpr, TILE_ROWS: tl.constexpr):
    """Heads j, j + 1, j + 8 and j + 9 of 16: four [ROWS, TILE_ROWS, 4]."""
    eights = tl.reshape(pairs, [ROWS, TILE_ROWS, 2, 4, 2])
    low, high = tl.split(tl.permute(eights, (0, 1, 3, 4, 2)))
    v0, v1 = tl.split(low)
    v8, v9 = tl.split(high)
    return v0, v1, v8, v9
