"""Score the tokens of each row's own blocks: the refine step as a pipeline of products."""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from hisparse_kernels.gpu.gluon.api import async_load
from hisparse_kernels.gpu.gluon.head_sum import head_sum
from hisparse_kernels.gpu.gluon.layouts import (
    key_layout,
    operand_layout,
    product_layout,
    vector_layout,
    wide_rows_layout,
)
from hisparse_kernels.gpu.gluon.options import pipeline_options
from hisparse_kernels.gpu.gluon.products import accumulators, finish_product, start_product
from hisparse_kernels.gpu.gluon.row_tiles import tile_at, tiles_to_score
from hisparse_kernels.gpu.gluon.steps import await_copies, begin_step, finish_step, four_of
from hisparse_kernels.gpu.score_keys import codes_and_scales, tiles_per_program
from hisparse_kernels.layouts import IndexLayout

_KEYS = 128  # of a tile: one tcgen05 product; a block is of whole tiles


def refine_logits_gluon(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_pages: torch.Tensor,
    block_slots: torch.Tensor,
    block_ids: torch.Tensor,
    row_pos: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
    out: torch.Tensor,
    *,
    write_all: bool = False,
) -> torch.Tensor:
    """See `refine_logits`: of e4m3 queries with 32 or 64 heads and fp8 pages, on sm_90 or sm_100.

    Blocks are of a multiple of 128 tokens; queries and pages start at multiples of 16 bytes. With
    `write_all` columns of no block become -inf. A program keeps one row and goes over a run of its
    tiles.
    """
    rows, num_entries = block_slots.shape
    if rows == 0 or num_entries == 0:
        return out
    num_tiles = num_entries * block_tokens // _KEYS
    tiles = tiles_per_program(rows, num_tiles)
    codes, scales = codes_and_scales(index_pages, layout)
    _refine_pipeline[rows, triton.cdiv(num_tiles, tiles)](
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
        WRITE_ALL=write_all,
        **_options(index_q.shape[1], block_tokens),
    )
    return out


def compile_refine_logits(heads: int, block_tokens: int = 128) -> None:
    """Compiles the kernel for the current GPU; raises whatever the compiler raises."""
    codes, fp32, int32 = torch.float8_e4m3fn, torch.float32, torch.int32
    arguments = codes, fp32, codes, fp32, int32, int32, int32, fp32, 64, 64, 64
    options = _options(heads, block_tokens)
    _refine_pipeline.warmup(*arguments, grid=(1,), WRITE_ALL=True, **options)


def _options(heads: int, block_tokens: int) -> dict[str, object]:
    return {
        "HEADS": heads,
        "TILES_PER_BLOCK": block_tokens // _KEYS,
        "KEYS": _KEYS,
        **pipeline_options(),
    }


@gluon.jit(do_not_specialize=["num_entries", "num_tiles", "tiles_per_program"])
def _refine_pipeline(
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
    WRITE_ALL: gl.constexpr,
    HEADS: gl.constexpr,
    TILES_PER_BLOCK: gl.constexpr,
    KEYS: gl.constexpr,
    ARCH: gl.constexpr,
    ACROSS: gl.constexpr,
):
    row = gl.program_id(0).to(gl.int64)
    first_tile = gl.program_id(1) * tiles_per_program
    last_tile = gl.minimum(first_tile + tiles_per_program, num_tiles)
    row_pos = gl.load(pos_ptr + row)
    slots_ptr += row * num_entries
    ids_ptr += row * num_entries
    out_ptr += row * num_entries * (TILES_PER_BLOCK * KEYS)
    begin, end, any_else = tiles_to_score(
        slots_ptr,
        ids_ptr,
        row_pos,
        num_entries,
        first_tile,
        last_tile,
        WRITE_ALL,
        TILES_PER_BLOCK,
        KEYS,
    )
    if begin < end:
        _score_tiles(
            query_ptr + row * (HEADS * 128),
            weights_ptr + row * HEADS,
            codes_ptr,
            scales_ptr,
            slots_ptr,
            ids_ptr,
            row_pos,
            out_ptr,
            begin,
            end,
            WRITE_ALL,
            HEADS,
            TILES_PER_BLOCK,
            KEYS,
            ARCH,
            ACROSS,
        )
    if any_else != 0:  # tiles that nobody sees, before and after the others
        key = gl.arange(0, KEYS, vector_layout(1, gl.num_warps()))
        nothing = gl.full(key.shape, float("-inf"), gl.float32, key.type.layout)
        for skipped in range(first_tile, last_tile - (end - begin)):
            tile = gl.where(skipped < begin, skipped, skipped + end - begin)
            if WRITE_ALL:
                gl.store(out_ptr + tile * KEYS + key, nothing)
            else:
                place, _ = tile_at(slots_ptr, ids_ptr, tile, last_tile, TILES_PER_BLOCK)
                gl.store(out_ptr + tile * KEYS + key, nothing, mask=place >= 0)


@gluon.jit
def _score_tiles(
    query_ptr,
    weights_ptr,
    codes_ptr,
    scales_ptr,
    slots_ptr,
    ids_ptr,
    row_pos,
    out_ptr,
    begin,
    end,
    WRITE_ALL: gl.constexpr,
    HEADS: gl.constexpr,
    TILES_PER_BLOCK: gl.constexpr,
    KEYS: gl.constexpr,
    ARCH: gl.constexpr,
    ACROSS: gl.constexpr,
):
    """Writes the logits of the row's tiles [begin, end)."""
    products: gl.constexpr = product_layout(ARCH, KEYS, HEADS, gl.num_warps())
    queries = gl.allocate_shared_memory(gl.float8e4nv, [HEADS, 128], operand_layout())
    keys = four_of(gl.float8e4nv, [KEYS, 128], operand_layout())
    acc, idle, done = accumulators(ARCH, KEYS, HEADS)
    _load_queries(query_ptr, queries)
    for early in gl.static_range(3):
        place, _ = tile_at(slots_ptr, ids_ptr, begin + early, end, TILES_PER_BLOCK)
        _load_keys(codes_ptr, keys[early], place)
    weights = gl.load(weights_ptr + gl.arange(0, HEADS, gl.SliceLayout(0, products)))
    far, _ = tile_at(slots_ptr, ids_ptr, begin + 3, end, TILES_PER_BLOCK)
    if ACROSS:
        await_copies(2)
        acc = start_product(keys[0], queries, acc, done, 0, ARCH)
    for turn in range(gl.cdiv(end - begin, 4)):
        for stage in gl.static_range(4):
            tile = begin + turn * 4 + stage
            here, after = keys[stage], keys[(stage + 1) % 4]
            acc, idle = begin_step(
                here, queries, after, queries, acc, idle, done, stage, ACROSS, ARCH
            )
            _load_keys(codes_ptr, keys[(stage + 3) % 4], far)
            # a step before it is used: its copies would wait for it
            far, _ = tile_at(slots_ptr, ids_ptr, tile + 4, end, TILES_PER_BLOCK)
            place, number = tile_at(slots_ptr, ids_ptr, tile, end, TILES_PER_BLOCK)
            key = gl.arange(0, KEYS, key_layout(ARCH, KEYS, 1, HEADS, gl.num_warps()))
            key_scale = _load_scales(scales_ptr, place, key)
            dots, acc, idle = finish_step(acc, idle, done, stage, ACROSS, ARCH, KEYS, HEADS)
            sums = gl.reshape(head_sum(dots, weights, 1, HEADS, ARCH), [KEYS])
            logits = gl.convert_layout(sums, key.type.layout, assert_trivial=True) * key_scale
            # of no block nothing is seen, whatever its stage holds
            last_seen = gl.where(place >= 0, row_pos - number * KEYS, -1)
            written = tile < end if WRITE_ALL else place >= 0
            _store_logits(out_ptr + tile * KEYS, key, logits, last_seen, written)
    if ACROSS:  # one product more than there are steps
        finish_product(acc, done, 0, 0, ARCH, KEYS, HEADS, 0)
    async_copy.wait_group(0)


@gluon.jit
def _load_queries(query_ptr, queries):
    """Begins to copy the row's heads; they come with the first tile."""
    layout: gl.constexpr = wide_rows_layout(gl.num_warps())
    head = gl.arange(0, queries.shape[0], gl.SliceLayout(1, layout))
    dim = gl.arange(0, 128, gl.SliceLayout(0, layout))
    async_load(queries, query_ptr + (gl.expand_dims(head * 128, 1) + gl.expand_dims(dim, 0)))


@gluon.jit
def _load_keys(codes_ptr, keys, place):
    """Begins to copy the codes of a tile's pages; of place -1 nothing."""
    layout: gl.constexpr = wide_rows_layout(gl.num_warps())
    key = gl.arange(0, keys.shape[0], gl.SliceLayout(1, layout))
    dim = gl.arange(0, 128, gl.SliceLayout(0, layout))
    # a page of codes ends in 64 fp32 scales: it is 64 * 132 codes or 64 * 33 scales long
    within = gl.expand_dims(key // 64 * (64 * 132) + key % 64 * 128, 1) + gl.expand_dims(dim, 0)
    first = gl.maximum(place, 0) * (keys.shape[0] * 132)
    async_load(keys, codes_ptr + first + within, mask=place >= 0)
    async_copy.commit_group()


@gluon.jit
def _store_logits(tile_ptr, key, logits, last_seen, written):
    seen = gl.where(key <= last_seen, logits, float("-inf"))
    gl.store(tile_ptr + key, seen, mask=written)


@gluon.jit
def _load_scales(scales_ptr, place, key):
    first = gl.maximum(place, 0) * (key.shape[0] * 33)
    within = key // 64 * (64 * 33) + 64 * 32 + key % 64
    return gl.load(scales_ptr + first + within, mask=place >= 0, other=0.0)
