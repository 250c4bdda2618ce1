"""Stored KV rows as tiles of sparse attention: codes in registers, bf16 in shared memory.

An e4m3 code becomes the bf16 number whose exponent field is the code's own: 2**-120 of its value,
exactly. Queries and weights carry 2**60 of it.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from hisparse_kernels.gpu.gluon.api import async_load
from hisparse_kernels.layouts import SCALE_DIM

LIFT = gl.constexpr(2.0**60)

_GROUP = gl.constexpr(SCALE_DIM)
_SCALES_AT = gl.constexpr(512)
_ROPE_AT = gl.constexpr(512 + 512 // SCALE_DIM * 4)
_SCAN = gl.constexpr(1024)  # ids in one step of the search for the last key
# Half of it is work of the pipe of multiplications: times 16 puts exponent and mantissa where they
# belong; the sign, then at bit 11, moves to bit 15. A NaN code becomes 480: it is
# the scale of a row of NaN that says so.
_WIDEN = gl.constexpr("""{
    .reg .b32 low, high, low_sign, high_sign;
    prmt.b32 low, $4, 0, 0x4140;
    prmt.b32 high, $4, 0, 0x4342;
    and.b32 low_sign, low, 0x00800080;
    and.b32 high_sign, high, 0x00800080;
    mul.lo.u32 low, low, 16;
    mul.lo.u32 high, high, 16;
    mad.lo.u32 low, low_sign, 240, low;
    mad.lo.u32 high, high_sign, 240, high;
    mov.b32 {$0, $1}, low;
    mov.b32 {$2, $3}, high;
}""")


@gluon.jit
def rows_of(ROWS: gl.constexpr, COLUMNS: gl.constexpr) -> gl.shared_memory_descriptor:
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    return gl.allocate_shared_memory(gl.bfloat16, [ROWS, COLUMNS], layout)


@gluon.jit
def group_rows_of(ROWS: gl.constexpr) -> gl.tuple:
    """Room for a part of each scale group, [ROWS, dims]."""
    return (
        rows_of(ROWS, _GROUP),
        rows_of(ROWS, _GROUP),
        rows_of(ROWS, _GROUP),
        rows_of(ROWS, _GROUP),
    )


@gluon.jit
def last_key(ids_ptr, counts_ptr, row, first, end) -> gl.tensor:
    """After the last key of the split that the row may look at."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    if counts_ptr is not None:
        end = gl.minimum(end, gl.load(counts_ptr + row))
    last = first
    for start in range(first, end, _SCAN):
        key = start + gl.arange(0, _SCAN, layout)
        row_id = load_ids(ids_ptr, key, end)
        last = gl.maximum(last, gl.max(gl.where(row_id >= 0, key + 1, first), 0))
    return last


@gluon.jit
def load_queries(
    query_ptr, first_head, heads, strides, HEADS: gl.constexpr, ROPE: gl.constexpr
) -> gl.tuple:
    """The heads in shared memory: a part for each scale group, then that of the rope."""
    q0, q1, q2, q3 = group_rows_of(HEADS)
    _load_query(query_ptr, q0, first_head, heads, 0, strides, LIFT, True)
    _load_query(query_ptr, q1, first_head, heads, _GROUP, strides, LIFT, True)
    _load_query(query_ptr, q2, first_head, heads, 2 * _GROUP, strides, LIFT, True)
    _load_query(query_ptr, q3, first_head, heads, 3 * _GROUP, strides, LIFT, True)
    if ROPE > 0:
        q4 = rows_of(HEADS, ROPE)
        _load_query(query_ptr, q4, first_head, heads, 4 * _GROUP, strides, 1.0, False)
    else:
        q4 = q0
    return q0, q1, q2, q3, q4


@gluon.jit
def _load_query(
    query_ptr, target, first_head, heads, first_dim, strides, factor, REORDER: gl.constexpr
) -> None:
    """Copies some dims of the heads, times a power of two, to shared memory; 0 beyond the heads."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    head = first_head + gl.arange(0, target.shape[0], gl.SliceLayout(1, layout))
    dim = first_dim + gl.arange(0, target.shape[1], gl.SliceLayout(0, layout))
    head_at = gl.expand_dims(head.to(gl.int64) * strides[0], 1)
    dim_at = gl.expand_dims(dim.to(gl.int64) * strides[1], 0)
    mask = gl.expand_dims(head < heads, 1) & (gl.expand_dims(dim, 0) >= 0)
    values = gl.load(query_ptr + (head_at + dim_at), mask=mask, other=0.0).to(gl.float32)
    values = (values * factor).to(gl.bfloat16)
    if REORDER:
        values = _operand_order(values)
    target.store(values)


@gluon.jit
def load_ids(ids_ptr, key, end) -> gl.tensor:
    return gl.load(ids_ptr + key, mask=key < end, other=-1)


@gluon.jit
def row_at(kv_ptr, row_id, row_stride) -> gl.tensor:
    # int64: pools pass 2**31 bytes
    return kv_ptr + gl.maximum(row_id, 0).to(gl.int64) * row_stride


@gluon.constexpr_function
def codes_layout() -> gl.DistributedLinearLayout:
    """Of words [64, 32]: what a thread holds of a row is its part of an operand of products."""
    return gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 16], [8, 0]],
        [[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0]],
        [],
        [64, 32],
    )


@gluon.constexpr_function
def scales_layout() -> gl.DistributedLinearLayout:
    """Of scales [64, 4]: the four of a row lie in the four lanes that hold its products."""
    return gl.DistributedLinearLayout(
        [[8, 0]], [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0]], [], [64, 4]
    )


@gluon.jit
def load_tile(kv_ptr, row_id, row_stride) -> gl.tuple:
    """Codes of each scale group as words [keys, 32], and scales [keys, 4]; 0 of no key."""
    layout: gl.constexpr = codes_layout()
    own_id = gl.convert_layout(row_id, gl.SliceLayout(1, layout))
    word = gl.arange(0, 32, gl.SliceLayout(0, layout))
    words_at = row_at(kv_ptr, own_id, row_stride).to(gl.pointer_type(gl.uint32))
    at = gl.expand_dims(words_at, 1) + gl.expand_dims(word, 0)
    mask = gl.expand_dims(own_id >= 0, 1) & (gl.expand_dims(word, 0) >= 0)
    codes = (
        gl.load(at, mask=mask, other=0),
        gl.load(at + 32, mask=mask, other=0),
        gl.load(at + 64, mask=mask, other=0),
        gl.load(at + 96, mask=mask, other=0),
    )
    return codes, _load_scales(kv_ptr, row_id, row_stride)


@gluon.jit
def _load_scales(kv_ptr, row_id, row_stride):
    layout: gl.constexpr = scales_layout()
    row_id = gl.convert_layout(row_id, gl.SliceLayout(1, layout))
    at = (row_at(kv_ptr, row_id, row_stride) + _SCALES_AT).to(gl.pointer_type(gl.float32))
    group = gl.arange(0, 4, gl.SliceLayout(0, layout))
    mask = gl.expand_dims(row_id >= 0, 1) & (gl.expand_dims(group, 0) >= 0)
    return gl.load(gl.expand_dims(at, 1) + gl.expand_dims(group, 0), mask=mask, other=0.0)


@gluon.jit
def scales_by_group(scales, LAYOUT: gl.constexpr) -> gl.tuple:
    """The four columns of scales [keys, 4]."""
    return (
        _scale_of(scales, 0, LAYOUT),
        _scale_of(scales, 1, LAYOUT),
        _scale_of(scales, 2, LAYOUT),
        _scale_of(scales, 3, LAYOUT),
    )


@gluon.jit
def _scale_of(scales, GROUP: gl.constexpr, LAYOUT: gl.constexpr):
    group = gl.arange(0, 4, gl.SliceLayout(0, scales.type.layout))
    own = gl.where(gl.expand_dims(group == GROUP, 0), scales, 0.0)
    return gl.convert_layout(gl.sum(own, 1), LAYOUT)


@gluon.jit
def begin_rope(kv_ptr, ids_ptr, start, end, row_stride, target) -> None:
    """Begins to copy the rope values of a tile's keys; of no key the target may hold anything."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    key = gl.arange(0, target.shape[0], gl.SliceLayout(1, layout))
    dim = gl.arange(0, target.shape[1], gl.SliceLayout(0, layout))
    row_id = load_ids(ids_ptr, start + key, end)
    at = (row_at(kv_ptr, row_id, row_stride) + _ROPE_AT).to(gl.pointer_type(gl.bfloat16))
    mask = gl.expand_dims(row_id >= 0, 1) & (gl.expand_dims(dim, 0) >= 0)
    async_load(target, gl.expand_dims(at, 1) + gl.expand_dims(dim, 0), mask=mask)
    async_copy.commit_group()


@gluon.jit
def store_widened(rows, codes, LAYOUT: gl.constexpr) -> gl.tensor:
    """Stores bf16 values of e4m3 codes, times 2**-120; returns them as an operand of products.

    Of the operand, dims are in another order, see `_operand_order`.
    """
    b0, b1, b2, b3 = gl.inline_asm_elementwise(
        _WIDEN,
        "=h,=h,=h,=h,r",
        [codes],
        dtype=(gl.bfloat16, gl.bfloat16, gl.bfloat16, gl.bfloat16),
        is_pure=True,
        pack=1,
    )
    pairs = gl.join(gl.join(b0, b1), gl.join(b2, b3))  # [keys, words, 2, pairs]
    values = gl.reshape(gl.permute(pairs, (0, 1, 3, 2)), [rows.shape[0], rows.shape[1]])
    rows.store(values)
    return gl.convert_layout(_operand_order(values), LAYOUT)


@gluon.jit
def _operand_order(values):
    """Dims [rows, 128] as a product takes them: a thread's 16 adjacent ones make four steps of 16.

    Dim 64 a + 16 b + 4 c + 2 d + e moves to 64 a + 16 c + 8 d + 2 b + e.
    """
    split = gl.reshape(values, [values.shape[0], 2, 4, 4, 2, 2])
    return gl.reshape(gl.permute(split, (0, 1, 3, 4, 2, 5)), [values.shape[0], 128])
