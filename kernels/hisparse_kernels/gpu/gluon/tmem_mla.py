"""Sparse attention whose dots and sums lie in tensor memory: one warp multiplies, four attend.

Dots have two stages: those of the next tile are made while the softmax looks at a tile's. TMEM has
512 columns: sums take 256, both stages of dots 128. The other 128 hold the first half of 128
heads' queries in bf16, for which shared memory has no room beside two tiles; their weights lie
where their dots lay. 64 heads' queries and weights are in shared memory.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.blackwell import (
    TensorMemoryLayout,
    allocate_tensor_memory,
    tcgen05_mma,
)
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from hisparse_kernels.gpu.gluon.api import barrier, reinterpreted, tmem_registers
from hisparse_kernels.gpu.gluon.gathered_tiles import two_barriers
from hisparse_kernels.gpu.gluon.head_rows import (
    add_weights,
    load_query,
    logits_of,
    query_values,
    softmax_step,
    store_columns,
)
from hisparse_kernels.gpu.gluon.mla_rows import load_ids, rows_of
from hisparse_kernels.gpu.gluon.mla_tiles import HALF

MOST_HEADS = gl.constexpr(128)  # the lanes of TMEM
_SUMS = gl.constexpr(128 * 256)  # values of all sums of a program
_DIMS = gl.constexpr(64)  # of all heads in registers at a time; as many as a tile has keys


@gluon.constexpr_function
def dims_of(heads) -> int:
    """Latent dims that one program of so many heads sums: as many as 256 columns hold."""
    return int(_SUMS.value // heads)


@gluon.constexpr_function
def tmem_rows(heads, columns) -> TensorMemoryLayout:
    """Of values [heads, columns]; of 64 heads, two blocks share their columns."""
    return TensorMemoryLayout(block=(heads, 256 if columns > 256 else columns), col_stride=1)


@gluon.constexpr_function
def row_registers(heads, columns, num_warps, dtype=gl.float32) -> object:
    """Register layout of [heads, columns] in tensor memory."""
    return tmem_registers(heads, columns, tmem_rows(heads, columns), num_warps, dtype)


@gluon.jit
def load_queries(
    query_ptr, first_head, heads, strides, HEADS: gl.constexpr, ROPE: gl.constexpr
) -> gl.tuple:
    """The heads: halves of the latent dims, and the rope; of 128 heads the first half in TMEM."""
    if HEADS == MOST_HEADS:
        layout: gl.constexpr = row_registers(HEADS, _DIMS, gl.num_warps(), gl.bfloat16)
        first = allocate_tensor_memory(gl.bfloat16, [HEADS, HALF], tmem_rows(HEADS, HALF))
        for part in gl.static_range(HALF // _DIMS):
            values = query_values(
                query_ptr,
                first_head,
                heads,
                part * _DIMS,
                strides,
                HEADS,
                _DIMS,
                layout,
            )
            first.slice(part * _DIMS, _DIMS).store(values)
    else:
        first = rows_of(HEADS, HALF)
        _load_query(query_ptr, first, first_head, heads, 0, strides)
    second = rows_of(HEADS, HALF)
    _load_query(query_ptr, second, first_head, heads, HALF, strides)
    rope = second
    if ROPE > 0:
        rope = rows_of(HEADS, ROPE)
        _load_query(query_ptr, rope, first_head, heads, 2 * HALF, strides)
    return first, second, rope


@gluon.jit
def _load_query(query_ptr, target, first_head, heads, first_dim, strides) -> None:
    """Copies some dims of the heads to shared memory, a few at a time: all would spill."""
    for part in gl.static_range(target.shape[1] // _DIMS):
        at = target.slice(part * _DIMS, _DIMS, dim=1)
        load_query(query_ptr, at, first_head, heads, first_dim + part * _DIMS, strides)
        barrier()


@gluon.jit
def product_places(HEADS: gl.constexpr, KEYS: gl.constexpr) -> gl.tuple:
    """Dots [2 stages, heads, keys], sums [heads, dims], and room for weights where they need it."""
    dots = allocate_tensor_memory(gl.float32, [2, HEADS, KEYS], tmem_rows(HEADS, KEYS))
    sums = allocate_tensor_memory(
        gl.float32, [HEADS, dims_of(HEADS)], tmem_rows(HEADS, dims_of(HEADS))
    )
    weights = dots
    if HEADS != MOST_HEADS:
        weights = rows_of(HEADS, KEYS)
    return dots, sums, weights


@gluon.jit
def product_barriers() -> gl.tuple:
    """That a stage's dots are made; that a tile's weights are there; that its sums are made."""
    weighed = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    summed = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(weighed, count=1)
    mbarrier.init(summed, count=1)
    return two_barriers(), weighed, summed


@gluon.jit
def multiply_tiles(
    memory, told, keys, share, ROPE: gl.constexpr, HEADS: gl.constexpr, KEYS: gl.constexpr
) -> None:
    """Makes the dots of each tile, one tile ahead, and adds the tile's weighted values.

    `memory` is (queries, places, products), `told` the barriers of tiles and those of products. A
    program of 128 heads adds values of one half of the latent dims, its `share`.
    """
    queries, places, products = memory
    tile_barriers, barriers = told
    _, first, end = keys
    _, full, empty = tile_barriers
    _, weighed, summed = barriers
    num_tiles = (end - first + KEYS - 1) // KEYS
    if num_tiles > 0:
        mbarrier.wait(full.index(0), 0)
        _begin_dots(queries, places, products, barriers, 0, ROPE)
    for tile in tl.range(0, num_tiles):
        following = tile + 1
        if following < num_tiles:
            mbarrier.wait(full.index(following & 1), (following >> 1) & 1)
            _begin_dots(queries, places, products, barriers, following, ROPE)
        mbarrier.wait(weighed, tile & 1)
        done = (empty.index(tile & 1), summed)
        _begin_sums(places, products, tile, share, done, HEADS, KEYS)


@gluon.jit
def _begin_dots(queries, places, products, barriers, tile, ROPE: gl.constexpr) -> None:
    """Begins the dots [heads, keys] of a tile."""
    latent, rope = places
    place = tile & 1
    dots, ready = products[0].index(place), barriers[0].index(place)
    k0, k1 = latent.index(2 * place), latent.index(2 * place + 1)
    tcgen05_mma(queries[0], k0.permute((1, 0)), dots, use_acc=False)
    if ROPE > 0:
        tcgen05_mma(queries[1], k1.permute((1, 0)), dots)
        k2 = rope.index(place)
        tcgen05_mma(queries[2], k2.permute((1, 0)), dots, mbarriers=[ready])
    else:
        tcgen05_mma(queries[1], k1.permute((1, 0)), dots, mbarriers=[ready])


@gluon.jit
def _begin_sums(
    places, products, tile, share, done, HEADS: gl.constexpr, KEYS: gl.constexpr
) -> None:
    """Begins to add a tile's weighted sums; both barriers know when they are made."""
    latent, sums = places[0], products[1]
    place, more = tile & 1, tile > 0
    weights = weights_of(products, place, HEADS, KEYS)
    if HEADS == MOST_HEADS:
        values = latent.index(2 * place + share)
        tcgen05_mma(weights, values, sums, use_acc=more, mbarriers=[done[0], done[1]])
    else:
        v0, v1 = latent.index(2 * place), latent.index(2 * place + 1)
        tcgen05_mma(weights, v0, sums.slice(0, HALF), use_acc=more)
        s1 = sums.slice(HALF, HALF)
        tcgen05_mma(weights, v1, s1, use_acc=more, mbarriers=[done[0], done[1]])


@gluon.jit
def weights_of(products, place, HEADS: gl.constexpr, KEYS: gl.constexpr) -> object:
    """Where the weights [heads, keys] of a tile lie: of 128 heads, where its dots lay."""
    weights = products[2]
    if HEADS == MOST_HEADS:
        layout: gl.constexpr = tmem_rows(HEADS, KEYS)
        weights = reinterpreted(weights.index(place), gl.bfloat16, [HEADS, KEYS], layout)
    return weights


@gluon.jit
def attend_tiles(
    products, barriers, keys, scale_log2, HEADS: gl.constexpr, KEYS: gl.constexpr
) -> gl.tuple:
    """Turns dots into weights; maxima and sums of weights [heads], when all sums are made."""
    dots, sums, _ = products
    ready, weighed, summed = barriers
    ids_ptr, first, end = keys
    layout: gl.constexpr = row_registers(HEADS, KEYS, gl.num_warps())
    head_layout: gl.constexpr = gl.SliceLayout(1, layout)
    most = gl.full([HEADS], float("-inf"), gl.float32, head_layout)
    total = gl.full([HEADS], 0.0, gl.float32, head_layout)
    key = gl.arange(0, KEYS, gl.SliceLayout(0, layout))
    for start in tl.range(first, end, KEYS):
        tile = (start - first) // KEYS
        stage = tile & 1
        valid = load_ids(ids_ptr, start + key, end) >= 0
        mbarrier.wait(ready.index(stage), (tile >> 1) & 1)
        logits = logits_of(dots.index(stage).load(layout), valid, scale_log2)
        weights, factor, most = softmax_step(logits, most)
        total = add_weights(total, weights, factor)
        mbarrier.wait(summed, (tile & 1) ^ 1)  # of the tile before
        _store_weights(weights_of(products, stage, HEADS, KEYS), weights.to(gl.bfloat16))
        if tile > 0:
            _multiply_sums(sums, factor)
        hopper.fence_async_shared()
        barrier()  # all weights and sums are there
        mbarrier.arrive(weighed)
    num_tiles = (end - first + KEYS - 1) // KEYS
    mbarrier.wait(summed, (num_tiles & 1) ^ 1)
    return most, total


@gluon.jit
def _store_weights(target, weights) -> None:
    heads: gl.constexpr = weights.shape[0]
    if heads == MOST_HEADS:
        layout: gl.constexpr = row_registers(heads, weights.shape[1], gl.num_warps(), gl.bfloat16)
        target.store(gl.convert_layout(weights, layout))
    else:
        target.store(weights)


@gluon.jit
def _multiply_sums(sums, factor) -> None:
    """All sums times a factor of each head."""
    layout: gl.constexpr = row_registers(sums.shape[0], _DIMS, gl.num_warps())
    for part in gl.static_range(sums.shape[1] // _DIMS):
        values = sums.slice(part * _DIMS, _DIMS)
        values.store(values.load(layout) * gl.expand_dims(factor, 1))


@gluon.jit
def store_sums(row_ptr, sums, factor, total, real) -> None:
    """Stores sums * factor to the heads' rows; 0 of heads without a key, which have no sums."""
    layout: gl.constexpr = row_registers(sums.shape[0], _DIMS, gl.num_warps())
    for part in gl.static_range(sums.shape[1] // _DIMS):
        values = sums.slice(part * _DIMS, _DIMS).load(layout)
        held = gl.where(gl.expand_dims(total != 0, 1), values, 0.0)
        store_columns(row_ptr, held, factor, real, part * _DIMS)
        barrier()  # all parts at once would spill
