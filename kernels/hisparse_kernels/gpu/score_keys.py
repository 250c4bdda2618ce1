"""Score a tile of keys with all heads of one row: the body of every op that scores.

index_logits, paged_index_logits and refine_logits compile the same tile: one shape, one number of
warps, one order of sums. So a row and a key give the same bits in each of them, wherever the key
stands in its tile. Keys are the rows of the product: a thread then holds many heads of one key.
"""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.interpreter import interpreting
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout

# Two pages: 128 rows are one tcgen05 product (64 would use half of it) and two wgmma, and with 64
# heads the sums are 64 registers of each of 128 threads, so several programs share an SM and one
# scores while another's product runs.
BLOCK_KEYS = 2 * PAGE_TOKENS
_PROGRAMS = 528  # one round of four programs on each of 132 SMs


def tile_options(
    index_q: torch.Tensor, layout: IndexLayout, num_heads: int | None = None
) -> dict[str, object]:
    """Compile-time values of the tile: they follow from heads, dtype and layout alone.

    `num_heads` is how many of a row's heads score; None = all.
    """
    heads = index_q.shape[1] if num_heads is None else num_heads
    return {
        "HEADS": heads,
        "PADDED_HEADS": max(16, triton.next_power_of_2(heads)),
        "BLOCK_KEYS": BLOCK_KEYS,
        "PRODUCT": _product(index_q.dtype, layout),
        "HAS_SCALE": layout.name == "fp8",
        "WIDEN": interpreting(),
        "num_warps": 4,
        "num_stages": 3,
        # which product fuses with which sum would differ from op to op: `_head_sum` says it
        "enable_fp_fusion": False,
    }


def codes_and_scales(
    stored: torch.Tensor, layout: IndexLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same bytes as codes and as fp32 scales; of an fp32 layout twice the fp32 values."""
    scales = stored.view(torch.float32)
    return (stored.view(torch.float8_e4m3fn), scales) if layout.name == "fp8" else (scales, scales)


def tiles_per_program(rows: int, num_tiles: int) -> int:
    """How many tiles of a row one program scores; more programs where there are few rows."""
    return int(triton.cdiv(num_tiles, min(num_tiles, max(_PROGRAMS // rows, 1))))


def _product(dtype: torch.dtype, layout: IndexLayout) -> str:
    if layout.name == "fp32" or dtype == torch.float32:
        return "fp32"
    return "bf16" if dtype == torch.bfloat16 else "fp8"


@triton.jit
def load_query(
    query_ptr,
    weights_ptr,
    row,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    PRODUCT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """One row's heads and weights, zeros in the padding; of an fp32 product only the pointers."""
    head = tl.arange(0, PADDED_HEADS)
    heads_ptr = query_ptr + (row.to(tl.int64) * HEADS + head) * 128
    weights = tl.load(weights_ptr + row.to(tl.int64) * HEADS + head, mask=head < HEADS, other=0.0)
    values_ptr = heads_ptr[:, None] + tl.arange(0, 128)[None, :]
    if PRODUCT == "fp32":
        query = heads_ptr
    elif HEADS == PADDED_HEADS:
        query = tl.load(values_ptr)
    else:
        query = tl.load(values_ptr, mask=(head < HEADS)[:, None], other=0.0)
    return query, weights


@triton.jit
def load_picked_query(
    query_ptr,
    weights_ptr,
    picked_ptr,
    row,
    num_query_heads,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    PRODUCT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """`load_query` of the heads that `picked_ptr` [rows, HEADS] names; None = of all."""
    if picked_ptr is None:
        query, weights = load_query(query_ptr, weights_ptr, row, HEADS, PADDED_HEADS, PRODUCT)
    else:
        head = tl.arange(0, PADDED_HEADS)
        picked = tl.load(picked_ptr + row.to(tl.int64) * HEADS + head, mask=head < HEADS, other=0)
        place = row.to(tl.int64) * num_query_heads + tl.maximum(picked, 0)
        weights = tl.load(weights_ptr + place, mask=head < HEADS, other=0.0)
        query = query_ptr + place * 128
        if PRODUCT != "fp32":
            values_ptr = query[:, None] + tl.arange(0, 128)[None, :]
            query = tl.load(values_ptr, mask=(head < HEADS)[:, None], other=0.0)
    return query, weights


@triton.jit
def load_page_keys(
    codes_ptr,
    scales_ptr,
    page0,
    page1,
    ADJACENT: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Keys and scales of two pages; page1 is page0 + 1 where ADJACENT."""
    key = tl.arange(0, BLOCK_KEYS)
    # a page of codes ends in 64 fp32 scales: it is 64 * 132 codes or 64 * 33 scales long
    page_values: tl.constexpr = 64 * 132 if HAS_SCALE else 64 * 128
    within = (key % 64) * 128
    if ADJACENT:  # the sum below is then the same for every tile, beside one scalar
        first = page0.to(tl.int64) * page_values
        keys_ptr = codes_ptr + first + (key // 64 * page_values + within)
    else:
        page = tl.where(key < 64, page0.to(tl.int64), page1.to(tl.int64))
        keys_ptr = codes_ptr + (page * page_values + within)
    keys = load_keys(keys_ptr, PRODUCT)
    if HAS_SCALE:
        if ADJACENT:
            scale = key // 64 * (64 * 33) + 64 * 32 + key % 64
            key_scale = tl.load(scales_ptr + page0.to(tl.int64) * (64 * 33) + scale)
        else:
            key_scale = tl.load(scales_ptr + (page * (64 * 33) + 64 * 32 + key % 64))
    else:
        key_scale = 1.0
    return keys, key_scale


@triton.jit
def load_tile_pages(pages_ptr, tile, max_pages) -> tuple[tl.tensor, tl.tensor]:
    """The two pages that a sequence's table names for a tile; -1 = none."""
    page0 = tl.load(pages_ptr + 2 * tile)
    page1 = tl.load(pages_ptr + 2 * tile + 1, mask=2 * tile + 1 < max_pages, other=-1)
    return page0, page1


@triton.jit
def load_table_keys(
    codes_ptr,
    scales_ptr,
    pages,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Keys and scales of a tile, of the two pages that `load_tile_pages` gives.

    -1 reads some page of the pool, whose keys the caller masks.
    """
    page0, page1 = tl.maximum(pages[0], 0), tl.maximum(pages[1], 0)
    keys, key_scale = load_page_keys(
        codes_ptr, scales_ptr, page0, page1, False, BLOCK_KEYS, PRODUCT, HAS_SCALE
    )
    return keys, key_scale


@triton.jit
def load_keys_by_row(
    codes_ptr, scales_ptr, row, PRODUCT: tl.constexpr, HAS_SCALE: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Keys and scales of rows [BLOCK_KEYS] int64 anywhere, each page * 64 + place."""
    page, place = row // 64, row % 64
    page_values: tl.constexpr = 64 * 132 if HAS_SCALE else 64 * 128
    keys = load_keys(codes_ptr + page * page_values + place * 128, PRODUCT)
    key_scale = tl.load(scales_ptr + page * (64 * 33) + 64 * 32 + place) if HAS_SCALE else 1.0
    return keys, key_scale


@triton.jit
def load_keys_of_two(
    codes0_ptr,
    scales0_ptr,
    page0,
    codes1_ptr,
    scales1_ptr,
    page1,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Keys and scales of two pages, each of its own pool."""
    key = tl.arange(0, BLOCK_KEYS)
    page_values: tl.constexpr = 64 * 132 if HAS_SCALE else 64 * 128
    first0_ptr = codes0_ptr + page0.to(tl.int64) * page_values
    first1_ptr = codes1_ptr + page1.to(tl.int64) * page_values
    keys_ptr = tl.where(key < 64, first0_ptr, first1_ptr) + (key % 64) * 128
    # bytes: pages are multiples of it, which is lost where an address is chosen
    keys = load_keys(tl.multiple_of(keys_ptr, 16), PRODUCT)
    if HAS_SCALE:
        first0_ptr = scales0_ptr + page0.to(tl.int64) * (64 * 33)
        first1_ptr = scales1_ptr + page1.to(tl.int64) * (64 * 33)
        key_scale = tl.load(tl.where(key < 64, first0_ptr, first1_ptr) + 64 * 32 + key % 64)
    else:
        key_scale = 1.0
    return keys, key_scale


@triton.jit
def load_keys(keys_ptr, PRODUCT: tl.constexpr) -> tl.tensor:
    """Values of the keys that start at `keys_ptr`; of an fp32 product only the pointers."""
    if PRODUCT == "fp32":
        keys = keys_ptr
    else:
        keys = tl.load(keys_ptr[:, None] + tl.arange(0, 128)[None, :])
    return keys


@triton.jit
def score_tile(
    keys,
    key_scale,
    query,
    weights,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    WIDEN: tl.constexpr,
) -> tl.tensor:
    """key_scale * sum_j weights[j] * relu(query[j] . key): [BLOCK_KEYS] fp32."""
    if PRODUCT == "fp32":
        dots = _fp32_dots(keys, query, HEADS, PADDED_HEADS, BLOCK_KEYS)
    elif PRODUCT == "bf16":  # every e4m3 value is a bf16 value
        if WIDEN:
            dots = tl.dot(keys.to(tl.float32), tl.trans(query.to(tl.float32)))
        else:
            dots = tl.dot(keys.to(tl.bfloat16), tl.trans(query))
    else:
        dots = tl.dot(keys, tl.trans(query))
    return _head_sum(tl.maximum(dots, 0.0), weights, PADDED_HEADS, BLOCK_KEYS) * key_scale


@triton.jit
def _head_sum(values, weights, PADDED_HEADS: tl.constexpr, BLOCK_KEYS: tl.constexpr):
    """sum_j weights[j] * values[:, j]: four heads by fma, then a tree over the groups of four.

    The four are j, j + 1, j + 8, j + 9, which lie in one thread of a wgmma or tcgen05 result.
    """
    v0, v1, v8, v9 = _quarters(values, BLOCK_KEYS, PADDED_HEADS)
    w0, w1, w8, w9 = _quarters(weights[None, :], 1, PADDED_HEADS)
    sums = tl.fma(v9, w9, tl.fma(v8, w8, tl.fma(v1, w1, v0 * w0)))
    return tl.sum(tl.reshape(sums, [BLOCK_KEYS, PADDED_HEADS // 4]), axis=1)


@triton.jit
def _quarters(values, ROWS: tl.constexpr, PADDED_HEADS: tl.constexpr):
    """Columns j, j + 1, j + 8 and j + 9 of [ROWS, PADDED_HEADS]: four [ROWS, heads / 16, 4]."""
    eights = tl.reshape(values, [ROWS, PADDED_HEADS // 16, 2, 8])
    low, high = tl.split(tl.permute(eights, (0, 1, 3, 2)))
    v0, v1 = tl.split(tl.reshape(low, [ROWS, PADDED_HEADS // 16, 4, 2]))
    v8, v9 = tl.split(tl.reshape(high, [ROWS, PADDED_HEADS // 16, 4, 2]))
    return v0, v1, v8, v9


@triton.jit
def _fp32_dots(
    keys_ptr,
    heads_ptr,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Dots of fp32 or widened values, 16 dimensions at a time: more would not fit the registers."""
    real = (tl.arange(0, PADDED_HEADS) < HEADS)[:, None]
    dots = tl.zeros([BLOCK_KEYS, PADDED_HEADS], dtype=tl.float32)
    for start in range(0, 128, 16):
        dim = start + tl.arange(0, 16)[None, :]
        keys = tl.load(keys_ptr[:, None] + dim).to(tl.float32)
        query = tl.load(heads_ptr[:, None] + dim, mask=real, other=0.0).to(tl.float32)
        dots = tl.dot(keys, tl.trans(query), dots, input_precision="ieee")
    return dots
