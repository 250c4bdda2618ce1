"""Sparse attention with many heads: 64 heads are the rows of all products, 64 keys a tile.

Eight warps attend to a tile that lies in shared memory as bf16, while four others bring the next
one to another place (`mla_tiles`).
"""

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from hisparse_kernels.gpu.attention_call import AttentionCall, warm_up
from hisparse_kernels.gpu.gluon.api import barrier
from hisparse_kernels.gpu.gluon.head_rows import (
    add_weights,
    load_query,
    logits_of,
    softmax_step,
    store_columns,
    store_weight_sums,
)
from hisparse_kernels.gpu.gluon.mla_lse import store_lse
from hisparse_kernels.gpu.gluon.mla_rows import last_key, load_ids, rows_of
from hisparse_kernels.gpu.gluon.mla_tiles import HALF, bring_tiles, tile_barriers, tile_places
from hisparse_kernels.layouts import KvLayout

HEADS = 64  # of one program
_KEYS = 64
_LATENT = gl.constexpr(2 * HALF.value)
_PRODUCERS = gl.constexpr(4)  # warps that bring tiles
# Registers of a thread that copies rows, and that dequantises them; the other warps share the rest.
_COPY_REGISTERS, _CODE_REGISTERS = 80, {"fp8_ds_mla": 112, "fp8": 104}
_GROUPS_AHEAD = {"fp8_ds_mla": 4, "fp8": 2, "bf16": 0}  # more would spill


def many_heads_mla_gluon(call: AttentionCall) -> None:
    """Attends as `sparse_mla` does, on sm_90, with queries of 16 bits and rows of fp8 or bf16."""
    num_programs = triton.cdiv(call.query.shape[1], HEADS)
    call.launch(_many_heads_kernel, num_programs, **_options(call.layout))


def compile_many_heads_mla(layout: KvLayout) -> None:
    """Compiles the kernel for the current GPU; raises whatever the compiler raises."""
    warm_up(_many_heads_kernel, HEADS, layout, 256, **_options(layout))


def _options(layout: KvLayout) -> dict[str, object]:
    return {
        "CODED": layout.name != "bf16",
        "ROPE": layout.rope_dim,
        "HEADS": HEADS,
        "KEYS": _KEYS,
        "AHEAD": _GROUPS_AHEAD[layout.name],
        "REGISTERS": _CODE_REGISTERS.get(layout.name, _COPY_REGISTERS),
        "num_warps": 8,
        "enable_fp_fusion": True,
    }


@gluon.jit(do_not_specialize=["most_at", "total_at", "heads", "topk", "split_keys"])
def _many_heads_kernel(
    query_ptr,
    kv_ptr,
    ids_ptr,
    counts_ptr,
    sink_ptr,
    workspace_ptr,
    most_at,
    total_at,
    out_ptr,
    lse_ptr,
    heads,
    topk,
    split_keys,
    query_row_stride,
    query_head_stride,
    query_dim_stride,
    kv_row_stride,
    scale_log2,
    CODED: gl.constexpr,
    ROPE: gl.constexpr,
    HEADS: gl.constexpr,
    KEYS: gl.constexpr,
    AHEAD: gl.constexpr,
    REGISTERS: gl.constexpr,
):
    """One program attends with a block of heads of one row to one split of its keys."""
    head_blocks = (heads + HEADS - 1) // HEADS
    row = (gl.program_id(0) // head_blocks).to(gl.int64)
    first_head = gl.program_id(0) % head_blocks * HEADS
    first = gl.program_id(1) * split_keys
    ids_ptr += row * topk
    end = last_key(ids_ptr, counts_ptr, row, first, gl.minimum(first + split_keys, topk))
    strides = (query_head_stride, query_dim_stride)
    query_ptr += row * query_row_stride
    queries = _load_queries(query_ptr, first_head, heads, strides, HEADS, ROPE)
    places, barriers = tile_places(KEYS, ROPE), tile_barriers(CODED, _PRODUCERS)
    weights_room = rows_of(HEADS, KEYS)
    hopper.fence_async_shared()
    barrier()
    keys = (ids_ptr, first, end)
    rows = (kv_ptr, kv_row_stride)
    most, total, first_sums, second_sums = gl.warp_specialize(
        [
            (
                _attend_tiles,
                (queries, places, weights_room, barriers, keys, scale_log2, ROPE, HEADS, KEYS),
            ),
            (bring_tiles, (places, barriers, rows, keys, CODED, ROPE, KEYS, AHEAD)),
        ],
        [_PRODUCERS],
        [REGISTERS],
    )

    head = first_head + gl.arange(0, HEADS, most.type.layout)
    output = row * heads + head
    sums = (first_sums, second_sums)
    if workspace_ptr is None:
        divisor = store_lse(lse_ptr + output, sink_ptr, most, total, head, heads)
        _store_sums(out_ptr + output * _LATENT, sums, 1.0 / divisor, head < heads)
    else:
        part = output * gl.num_programs(1) + gl.program_id(1)
        _store_part(workspace_ptr, part, (most_at, total_at), most, total, sums, head < heads)


@gluon.jit
def _store_part(workspace_ptr, part, places, most, total, sums, real) -> None:
    """Leaves what `merge_splits_kernel` merges, of each head."""
    store_weight_sums(workspace_ptr, part, places, most, total, real)
    held = real & (total != 0)  # else the merge reads no sums
    one = gl.full([total.shape[0]], 1.0, gl.float32, total.type.layout)
    _store_sums(workspace_ptr + part * _LATENT, sums, one, held)


@gluon.jit
def _load_queries(
    query_ptr, first_head, heads, strides, HEADS: gl.constexpr, ROPE: gl.constexpr
) -> gl.tuple:
    """The heads in shared memory: halves of the latent dims, and the rope."""
    first, second = rows_of(HEADS, HALF), rows_of(HEADS, HALF)
    load_query(query_ptr, first, first_head, heads, 0, strides)
    load_query(query_ptr, second, first_head, heads, HALF, strides)
    rope = first
    if ROPE > 0:
        rope = rows_of(HEADS, ROPE)
        load_query(query_ptr, rope, first_head, heads, _LATENT, strides)
    return first, second, rope


@gluon.jit
def _attend_tiles(
    queries,
    places,
    weights_room,
    barriers,
    keys,
    scale_log2,
    ROPE: gl.constexpr,
    HEADS: gl.constexpr,
    KEYS: gl.constexpr,
):
    """Maxima and sums of weights [heads], and weighted sums [heads, dims] of each half."""
    full, empty = barriers
    ids_ptr, first, end = keys
    dots_layout: gl.constexpr = _product_layout(KEYS // 2)
    sums_layout: gl.constexpr = _product_layout(HALF // 2)
    head_layout: gl.constexpr = gl.SliceLayout(1, sums_layout)
    most = gl.full([HEADS], float("-inf"), gl.float32, head_layout)
    total = gl.full([HEADS], 0.0, gl.float32, head_layout)
    s0 = gl.full([HEADS, HALF], 0.0, gl.float32, sums_layout)
    s1 = gl.full([HEADS, HALF], 0.0, gl.float32, sums_layout)
    key = gl.arange(0, KEYS, gl.SliceLayout(0, dots_layout))
    key_id = load_ids(ids_ptr, first + key, end)
    for start in tl.range(first, end, KEYS, disable_licm=True):
        tile = (start - first) // KEYS
        place = tile & 1
        valid = key_id >= 0
        mbarrier.wait(full.index(place), (tile >> 1) & 1)
        hopper.fence_async_shared()
        dots = _begin_dots(queries, places, place, ROPE, dots_layout)
        key_id = load_ids(ids_ptr, start + KEYS + key, end)
        dots = warpgroup_mma_wait(0, deps=[dots])
        weights, factor, most = softmax_step(logits_of(dots, valid, scale_log2), most)
        weights_room.store(weights.to(gl.bfloat16))
        s0, s1 = _begin_sums(weights_room, places, place, (s0, s1), gl.expand_dims(factor, 1))
        total = add_weights(total, weights, factor)
        s0, s1 = warpgroup_mma_wait(0, deps=[s0, s1])
        barrier()  # no warp reads the tile any more
        mbarrier.arrive(empty.index(place))
    return most, total, s0, s1


@gluon.jit
def _begin_dots(queries, places, place, ROPE: gl.constexpr, LAYOUT: gl.constexpr):
    """Begins the dots [heads, keys] of a tile."""
    k0, k1 = places[0].index(place), places[1].index(place)
    none = gl.full([queries[0].shape[0], k0.shape[0]], 0.0, gl.float32, LAYOUT)
    dots = warpgroup_mma(queries[0], k0.permute((1, 0)), none, use_acc=False, is_async=True)
    dots = warpgroup_mma(queries[1], k1.permute((1, 0)), dots, is_async=True)
    if ROPE > 0:
        rope = places[2].index(place)
        dots = warpgroup_mma(queries[2], rope.permute((1, 0)), dots, is_async=True)
    return dots


@gluon.jit
def _begin_sums(weights_room, places, place, sums, factor):
    """Begins the sums * factor + a tile's weighted sums, [heads, dims] of each half."""
    s0, s1 = sums[0] * factor, sums[1] * factor
    hopper.fence_async_shared()
    barrier()  # all weights are there
    s0 = warpgroup_mma(weights_room, places[0].index(place), s0, is_async=True)
    return s0, warpgroup_mma(weights_room, places[1].index(place), s1, is_async=True)


@gluon.constexpr_function
def _product_layout(columns) -> gl.NVMMADistributedLayout:
    """Of 64 heads: each of two warp groups makes half of the columns."""
    return gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, columns, 16]
    )


@gluon.jit
def _store_sums(row_ptr, sums, factor, real) -> None:
    """Stores sums * factor, of each half [heads, dims], to the heads' rows."""
    for half in gl.static_range(2):
        store_columns(row_ptr, sums[half], factor, real, half * HALF)
