"""Score every key of a range for many rows: the ragged flat indexer as a pipeline of products."""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from hisparse_kernels.gpu.gluon.api import async_load
from hisparse_kernels.gpu.gluon.head_sum import head_sum
from hisparse_kernels.gpu.gluon.layouts import (
    flat_layout,
    key_layout,
    narrow_rows_layout,
    operand_layout,
    product_layout,
    vector_layout,
    wide_rows_layout,
)
from hisparse_kernels.gpu.gluon.options import pipeline_options
from hisparse_kernels.gpu.gluon.products import accumulators, finish_product, start_product
from hisparse_kernels.gpu.gluon.row_runs import mask_rows, rows_that_see, store_rows
from hisparse_kernels.gpu.gluon.steps import await_copies, begin_step, finish_step, four_of
from hisparse_kernels.gpu.score_keys import codes_and_scales
from hisparse_kernels.layouts import IndexLayout

_KEYS = 128  # of a tile: with 64 or 256, or more warps, an H100 needs 3 to 16 % more time
_COLUMNS = 64  # heads of the rows of one step
_MOST_ROWS = {32: 512, 64: 128}  # rows of one program, by heads
_PROGRAMS = 1024


def index_logits_gluon(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_rows: torch.Tensor,
    key_start: torch.Tensor,
    key_end: torch.Tensor,
    layout: IndexLayout,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `index_logits`: of e4m3 queries with 32 or 64 heads and fp8 rows, on sm_90 or sm_100.

    A program keeps one tile of keys and goes over a run of rows.
    """
    rows, heads, _ = index_q.shape
    num_keys = index_rows.shape[0]
    if out is None:
        out = index_weights.new_empty(rows, num_keys)
    if out.numel() == 0:
        return out
    num_tiles = triton.cdiv(num_keys, _KEYS)
    rows_per_program = _rows_per_program(rows, num_tiles, heads)
    codes, scales = codes_and_scales(index_rows.contiguous(), layout)
    _ragged_pipeline[num_tiles, triton.cdiv(rows, rows_per_program)](
        index_q.contiguous(),
        index_weights.contiguous(),
        codes,
        scales,
        key_start.contiguous(),
        key_end.contiguous(),
        out,
        rows,
        num_keys,
        rows_per_program,
        **_options(heads),
    )
    return out


def compile_index_logits(heads: int) -> None:
    """Compiles the kernel for the current GPU; raises whatever the compiler raises."""
    codes, fp32, int32 = torch.float8_e4m3fn, torch.float32, torch.int32
    _ragged_pipeline.warmup(
        codes, fp32, codes, fp32, int32, int32, fp32, 64, 128, 64, grid=(1,), **_options(heads)
    )


def _options(heads: int) -> dict[str, object]:
    return {
        "HEADS": heads,
        "ROWS": _COLUMNS // heads,
        "KEYS": _KEYS,
        "MOST_ROWS": _MOST_ROWS[heads],
        **pipeline_options(),
    }


def _rows_per_program(rows: int, num_tiles: int, heads: int) -> int:
    """At least what one turn takes."""
    wanted = triton.cdiv(_PROGRAMS, num_tiles)  # programs over the rows
    fitting = int(triton.next_power_of_2(triton.cdiv(rows, wanted)))
    return min(_MOST_ROWS[heads], max(4 * _COLUMNS // heads, fitting))


@gluon.jit(do_not_specialize=["num_rows", "num_keys", "rows_per_program"])
def _ragged_pipeline(
    query_ptr,
    weights_ptr,
    codes_ptr,
    scales_ptr,
    start_ptr,
    end_ptr,
    out_ptr,
    num_rows,
    num_keys,
    rows_per_program,
    HEADS: gl.constexpr,
    ROWS: gl.constexpr,
    KEYS: gl.constexpr,
    MOST_ROWS: gl.constexpr,
    ARCH: gl.constexpr,
    ACROSS: gl.constexpr,
):
    first_key = gl.program_id(0) * KEYS
    first_row = gl.program_id(1) * rows_per_program
    last_row = gl.minimum(first_row + rows_per_program, num_rows)
    begin, end, whole = rows_that_see(
        start_ptr, end_ptr, first_row, last_row, first_key, KEYS, MOST_ROWS
    )
    spread: gl.constexpr = key_layout(ARCH, KEYS, ROWS, ROWS * HEADS, gl.num_warps())
    key = first_key + gl.arange(0, KEYS, spread)
    mask_rows(out_ptr, num_keys, key, first_row, begin)
    if begin < end:
        keys = _load_tile(codes_ptr, first_key, num_keys, KEYS)
        stored = gl.minimum(key, num_keys - 1).to(gl.int64)
        key_scale = gl.load(scales_ptr + stored * 33 + 32)
        _score_rows(
            query_ptr,
            weights_ptr,
            start_ptr,
            end_ptr,
            out_ptr,
            keys,
            key,
            key_scale,
            begin,
            end,
            num_keys,
            whole,
            HEADS,
            ROWS,
            ARCH,
            ACROSS,
        )
    mask_rows(out_ptr, num_keys, key, end, last_row)


@gluon.jit
def _score_rows(
    query_ptr,
    weights_ptr,
    start_ptr,
    end_ptr,
    out_ptr,
    tile,
    key,
    key_scale,
    begin,
    end,
    num_keys,
    whole,
    HEADS: gl.constexpr,
    ROWS: gl.constexpr,
    ARCH: gl.constexpr,
    ACROSS: gl.constexpr,
):
    """Writes the logits of rows [begin, end) at the tile's keys."""
    num_tile_keys: gl.constexpr = tile.shape[0]
    columns: gl.constexpr = ROWS * HEADS
    products: gl.constexpr = product_layout(ARCH, num_tile_keys, columns, gl.num_warps())
    keys = tile
    if ARCH < 100:  # wgmma then reads one operand only from shared memory
        keys = tile.load(gl.DotOperandLayout(0, products, 4))
    queries = four_of(gl.float8e4nv, [columns, 128], operand_layout())
    weights = four_of(gl.float32, [columns], flat_layout())
    acc, idle, done = accumulators(ARCH, num_tile_keys, columns)
    first_head, stop = begin * HEADS, end * HEADS
    for early in gl.static_range(3):
        head = first_head + early * columns
        _load_heads(query_ptr, weights_ptr, queries[early], weights[early], head, stop)
    if ACROSS:
        await_copies(2)
        acc = start_product(keys, queries[0], acc, done, 0, ARCH)
    for turn in range(gl.cdiv(end - begin, 4 * ROWS)):
        for stage in gl.static_range(4):
            step = turn * 4 + stage
            here, after = queries[stage], queries[(stage + 1) % 4]
            acc, idle = begin_step(keys, here, keys, after, acc, idle, done, stage, ACROSS, ARCH)
            head = first_head + (step + 3) * columns
            _load_heads(
                query_ptr,
                weights_ptr,
                queries[(stage + 3) % 4],
                weights[(stage + 3) % 4],
                head,
                stop,
            )
            weight = weights[stage].load(gl.SliceLayout(0, products))
            dots, acc, idle = finish_step(
                acc, idle, done, stage, ACROSS, ARCH, num_tile_keys, columns
            )
            sums = head_sum(dots, weight, ROWS, HEADS, ARCH)
            row = begin + step * ROWS
            store_rows(out_ptr, start_ptr, end_ptr, sums, key_scale, key, row, end, num_keys, whole)
    if ACROSS:  # one product more than there are steps
        finish_product(acc, done, 0, 0, ARCH, num_tile_keys, columns, 0)
    async_copy.wait_group(0)


@gluon.jit
def _load_tile(codes_ptr, first_key, num_keys, KEYS: gl.constexpr):
    """The codes of the tile's keys in shared memory."""
    layout: gl.constexpr = narrow_rows_layout(gl.num_warps())
    key = first_key + gl.arange(0, KEYS, gl.SliceLayout(1, layout))
    # the last tile reads its last key again and again instead of what lies beyond it
    stored = gl.minimum(key, num_keys - 1).to(gl.int64)
    values_ptr = gl.expand_dims(codes_ptr + stored * 132, 1)
    dim = gl.arange(0, 128, gl.SliceLayout(0, layout))
    codes = gl.load(values_ptr + gl.expand_dims(dim, 0))
    tile = gl.allocate_shared_memory(gl.float8e4nv, [KEYS, 128], operand_layout(), codes)
    hopper.fence_async_shared()
    return tile


@gluon.jit
def _load_heads(query_ptr, weights_ptr, queries, weights, first, stop):
    """Begins to copy one step's heads, first onwards, and weights; what is beyond stop stays."""
    columns: gl.constexpr = queries.shape[0]
    layout: gl.constexpr = wide_rows_layout(gl.num_warps())
    head = gl.arange(0, columns, gl.SliceLayout(1, layout))
    dim = gl.arange(0, 128, gl.SliceLayout(0, layout))
    offset = gl.expand_dims(head * 128, 1) + gl.expand_dims(dim, 0)
    async_load(
        queries,
        query_ptr + first.to(gl.int64) * 128 + offset,
        mask=gl.expand_dims(first + head < stop, 1),
    )
    weight = gl.arange(0, columns, vector_layout(4, gl.num_warps()))
    async_load(
        weights,
        weights_ptr + first.to(gl.int64) + weight,
        mask=first + weight < stop,
    )
    async_copy.commit_group()
