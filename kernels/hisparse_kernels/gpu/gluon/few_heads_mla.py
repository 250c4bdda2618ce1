"""Sparse attention with few heads: keys are the rows of all products, so no head is padded to 64.

A tile of 64 keys lies in shared memory as bf16, one part for each scale group. Logits are
products [keys, dims] @ [dims, heads] whose left operand is still in registers, outputs are products
[dims, keys] @ [keys, heads] of the stored tile, transposed. A key's scale is not multiplied into
the tile: it multiplies the group's dots, and the group's weights.
"""

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from hisparse_kernels.gpu.attention_call import AttentionCall, warm_up
from hisparse_kernels.gpu.gluon.api import barrier
from hisparse_kernels.gpu.gluon.mla_lse import store_lse
from hisparse_kernels.gpu.gluon.mla_rows import (
    LIFT,
    begin_rope,
    group_rows_of,
    last_key,
    load_ids,
    load_queries,
    load_tile,
    rows_of,
    scales_by_group,
    store_widened,
)
from hisparse_kernels.layouts import SCALE_DIM, KvLayout

MOST_HEADS = 16  # of one program
_KEYS = 64
_GROUP = gl.constexpr(SCALE_DIM)


def few_heads_mla_gluon(call: AttentionCall) -> None:
    """Attends as `sparse_mla` does, on sm_90, with queries of 16 bits and fp8 rows."""
    num_programs = triton.cdiv(call.query.shape[1], MOST_HEADS)
    call.launch(_few_heads_kernel, num_programs, **_options(call.layout))


def compile_few_heads_mla(layout: KvLayout) -> None:
    """Compiles the kernel for the current GPU; raises whatever the compiler raises."""
    warm_up(_few_heads_kernel, MOST_HEADS, layout, 128, **_options(layout))


def _options(layout: KvLayout) -> dict[str, object]:
    return {
        "ROPE": layout.rope_dim,
        "HEADS": MOST_HEADS,
        "KEYS": _KEYS,
        "num_warps": 4,
        "enable_fp_fusion": True,
    }


@gluon.jit(do_not_specialize=["most_at", "total_at", "heads", "topk", "split_keys"])
def _few_heads_kernel(
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
    ROPE: gl.constexpr,
    HEADS: gl.constexpr,
    KEYS: gl.constexpr,
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
    queries = load_queries(query_ptr, first_head, heads, strides, HEADS, ROPE)
    most, total, sums = _attend_tiles(
        queries, kv_ptr, ids_ptr, first, end, kv_row_stride, scale_log2, ROPE, HEADS, KEYS
    )

    head_layout: gl.constexpr = most.type.layout
    head = first_head + gl.arange(0, HEADS, head_layout)
    output = row * heads + head
    if workspace_ptr is None:
        divisor = store_lse(lse_ptr + output, sink_ptr, most, total, head, heads)
        _store_sums(out_ptr + output * (4 * _GROUP), sums, LIFT / divisor, head < heads)
    else:
        part = output * gl.num_programs(1) + gl.program_id(1)
        gl.store(workspace_ptr + most_at + part, most, mask=head < heads)
        gl.store(workspace_ptr + total_at + part, total, mask=head < heads)
        held = (head < heads) & (total != 0)  # else the merge reads no sums
        factor = gl.full([HEADS], LIFT, gl.float32, head_layout)
        _store_sums(workspace_ptr + part * (4 * _GROUP), sums, factor, held)


@gluon.jit
def _attend_tiles(
    queries,
    kv_ptr,
    ids_ptr,
    first,
    end,
    row_stride,
    scale_log2,
    ROPE: gl.constexpr,
    HEADS: gl.constexpr,
    KEYS: gl.constexpr,
):
    """Maxima and sums of weights [heads], and weighted sums [dims, heads] of each scale group."""
    products: gl.constexpr = _product_layout(HEADS, gl.num_warps())
    key_layout: gl.constexpr = gl.SliceLayout(1, products)
    values = group_rows_of(KEYS)
    parts = _weights_of(KEYS, HEADS)
    rope = (rows_of(KEYS, ROPE), rows_of(KEYS, ROPE)) if ROPE > 0 else (values[0], values[0])
    most = gl.full([HEADS], float("-inf"), gl.float32, gl.SliceLayout(0, products))
    total = gl.full([KEYS, HEADS], 0.0, gl.float32, products)
    none = gl.full([_GROUP, HEADS], 0.0, gl.float32, products)
    sums = (none, none, none, none)

    key = gl.arange(0, KEYS, key_layout)
    key_id = load_ids(ids_ptr, first + key, end)
    codes, scales = load_tile(kv_ptr, key_id, row_stride)
    if ROPE > 0:
        begin_rope(kv_ptr, ids_ptr, first, end, row_stride, rope[0])
    next_id = load_ids(ids_ptr, first + KEYS + key, end)
    # what is moved out of this loop would spill
    for start in tl.range(first, end, KEYS, disable_licm=True):
        valid = key_id >= 0
        group_scales = scales_by_group(scales, key_layout)
        _await_tile(ROPE)
        dots = _dots(values, codes, rope[0], queries, ROPE, HEADS)
        key_id = next_id
        codes, scales = load_tile(kv_ptr, key_id, row_stride)
        next_id = load_ids(ids_ptr, start + 2 * KEYS + key, end)
        if ROPE > 0:
            begin_rope(kv_ptr, ids_ptr, start + KEYS, end, row_stride, rope[1])
            rope = (rope[1], rope[0])
        logits = _logits(dots, group_scales, scale_log2, valid)
        weights, factor, most = _softmax_step(logits, most)
        total = total * factor + weights
        sums = _add_values(values, parts, weights, group_scales, sums, factor)
    return most, gl.sum(total, 0), sums


@gluon.constexpr_function
def _product_layout(heads, num_warps) -> gl.NVMMADistributedLayout:
    return gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[num_warps, 1], instr_shape=[16, heads, 16]
    )


@gluon.jit
def _weights_of(KEYS: gl.constexpr, HEADS: gl.constexpr):
    """Room for the weights of each scale group, [keys, heads]."""
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=32, element_bitwidth=16, rank=2)
    return (
        gl.allocate_shared_memory(gl.bfloat16, [KEYS, HEADS], layout),
        gl.allocate_shared_memory(gl.bfloat16, [KEYS, HEADS], layout),
        gl.allocate_shared_memory(gl.bfloat16, [KEYS, HEADS], layout),
        gl.allocate_shared_memory(gl.bfloat16, [KEYS, HEADS], layout),
    )


@gluon.jit
def _dots(values, codes, rope, queries, ROPE: gl.constexpr, HEADS: gl.constexpr):
    """Stores a tile's values; their dots [keys, heads] in each scale group, then of the rope."""
    products: gl.constexpr = _product_layout(HEADS, gl.num_warps())
    operand: gl.constexpr = gl.DotOperandLayout(0, products, 2)
    a0 = store_widened(values[0], codes[0], operand)
    d0 = _begin_product(a0, queries[0], products)
    a1 = store_widened(values[1], codes[1], operand)
    d1 = _begin_product(a1, queries[1], products)
    d0 = warpgroup_mma_wait(1, deps=[d0])
    a2 = store_widened(values[2], codes[2], operand)
    d2 = _begin_product(a2, queries[2], products)
    d1 = warpgroup_mma_wait(1, deps=[d1])
    a3 = store_widened(values[3], codes[3], operand)
    d3 = _begin_product(a3, queries[3], products)
    if ROPE > 0:
        d4 = _begin_product(rope, queries[4], products)
        d2, d3, d4 = warpgroup_mma_wait(0, deps=[d2, d3, d4])
    else:
        d2, d3 = warpgroup_mma_wait(0, deps=[d2, d3])
        d4 = gl.full(d3.shape, 0.0, gl.float32, products)
    return d0, d1, d2, d3, d4


@gluon.jit
def _begin_product(keys, heads, LAYOUT: gl.constexpr):
    none = gl.full([keys.shape[0], heads.shape[0]], 0.0, gl.float32, LAYOUT)
    return warpgroup_mma(keys, heads.permute((1, 0)), none, use_acc=False, is_async=True)


@gluon.jit
def _await_tile(ROPE: gl.constexpr):
    """The rope has come, and no product reads the tile before."""
    if ROPE > 0:
        async_copy.wait_group(0)
        hopper.fence_async_shared()
    barrier()


@gluon.jit
def _logits(dots, scales, scale_log2, valid):
    """Logits [keys, heads] in base 2; -inf of no key."""
    d0, d1, d2, d3, d4 = dots
    latent = d0 * gl.expand_dims(scales[0], 1) + d1 * gl.expand_dims(scales[1], 1)
    latent += d2 * gl.expand_dims(scales[2], 1) + d3 * gl.expand_dims(scales[3], 1)
    logits = (latent * LIFT + d4) * scale_log2
    return gl.where(gl.expand_dims(valid, 1), logits, float("-inf"))


@gluon.jit
def _softmax_step(logits, most):
    """A tile's weights, the factor of all sums so far [1, heads], and the new maxima [heads]."""
    new_most = gl.maximum(most, gl.max(logits, 0))
    base = gl.where(new_most == float("-inf"), 0.0, new_most)
    weights = gl.exp2(logits - gl.expand_dims(base, 0))
    return weights, gl.expand_dims(gl.exp2(most - base), 0), new_most


@gluon.jit
def _add_values(values, parts, weights, scales, sums, factor):
    """The sums * factor + the values' weighted sums, [dims, heads] of each scale group."""
    lifted = weights * LIFT
    parts[0].store((lifted * gl.expand_dims(scales[0], 1)).to(gl.bfloat16))
    parts[1].store((lifted * gl.expand_dims(scales[1], 1)).to(gl.bfloat16))
    parts[2].store((lifted * gl.expand_dims(scales[2], 1)).to(gl.bfloat16))
    parts[3].store((lifted * gl.expand_dims(scales[3], 1)).to(gl.bfloat16))
    s0, s1, s2, s3 = sums[0] * factor, sums[1] * factor, sums[2] * factor, sums[3] * factor
    hopper.fence_async_shared()
    barrier()
    s0 = warpgroup_mma(values[0].permute((1, 0)), parts[0], s0, is_async=True)
    s1 = warpgroup_mma(values[1].permute((1, 0)), parts[1], s1, is_async=True)
    s2 = warpgroup_mma(values[2].permute((1, 0)), parts[2], s2, is_async=True)
    s3 = warpgroup_mma(values[3].permute((1, 0)), parts[3], s3, is_async=True)
    return warpgroup_mma_wait(0, deps=[s0, s1, s2, s3])


@gluon.jit
def _store_sums(row_ptr, sums, factor, real):
    """Stores sums * factor, [dims, heads] of each group, to the heads' rows."""
    dim = gl.arange(0, _GROUP, gl.SliceLayout(1, sums[0].type.layout))
    at = gl.expand_dims(row_ptr, 0) + gl.expand_dims(dim, 1)
    mask = gl.expand_dims(real, 0) & (gl.expand_dims(dim, 1) >= 0)
    for group in gl.static_range(4):
        values = (sums[group] * gl.expand_dims(factor, 0)).to(row_ptr.dtype.element_ty)
        gl.store(at + group * _GROUP, values, mask=mask)
