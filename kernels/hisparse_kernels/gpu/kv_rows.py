"""KV rows in Triton: one program packs or unpacks one row."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.e4m3 import amax_or_nan, from_e4m3, quotient, to_e4m3
from hisparse_kernels.gpu.mla_tile import rounded_for
from hisparse_kernels.layouts import SCALE_DIM, KvLayout

_SCALE_DIM = tl.constexpr(SCALE_DIM)
_OPTIONS = {"num_warps": 2, "enable_fp_fusion": False}


def pack_kv_rows_triton(
    values: torch.Tensor, layout: KvLayout, out: torch.Tensor | None = None
) -> torch.Tensor:
    """See `hisparse_kernels.kv_rows.pack_kv_rows`."""
    num_rows = values.shape[0]
    if out is None:
        out = values.new_empty(num_rows, layout.row_bytes, dtype=torch.uint8)
    if num_rows:
        strides = values.stride(0), values.stride(1)
        if layout.name in ("bf16", "fp32"):
            _pack_plain_kernel[(num_rows,)](
                values, out, *strides, layout.query_dim, 1024, layout.name == "bf16", **_OPTIONS
            )
        else:
            _pack_fp8_kernel[(num_rows,)](values, out, *strides, *fp8_sizes(layout), **_OPTIONS)
    return out


def unpack_kv_rows_triton(
    rows: torch.Tensor, layout: KvLayout, out: torch.Tensor | None = None
) -> torch.Tensor:
    """See `hisparse_kernels.kv_rows.unpack_kv_rows`; of fp8 rows `out` may be bf16, too."""
    num_rows = rows.shape[0]
    if out is None:
        out = rows.new_empty(num_rows, layout.query_dim, dtype=torch.float32)
    if num_rows:
        rows = rows.contiguous()
        if layout.name in ("bf16", "fp32"):
            _unpack_plain_kernel[(num_rows,)](
                rows, out, layout.query_dim, 1024, layout.name == "bf16", **_OPTIONS
            )
        else:
            _unpack_fp8_kernel[(num_rows,)](rows, out, *fp8_sizes(layout), **_OPTIONS)
    return out


def fp8_sizes(layout: KvLayout) -> tuple[int, int, int]:
    """Scales, rope values and bytes of a row."""
    return layout.latent_dim // SCALE_DIM, layout.rope_dim, layout.row_bytes


@triton.jit
def _pack_plain_kernel(
    values_ptr,
    out_ptr,
    row_stride,
    dim_stride,
    QUERY_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BF16: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    values = plain_values(values_ptr + row * row_stride, dim_stride, QUERY_DIM, BLOCK, BF16)
    store_plain(out_ptr, row, values, QUERY_DIM, BLOCK)


@triton.jit
def _pack_fp8_kernel(
    values_ptr,
    out_ptr,
    row_stride,
    dim_stride,
    NUM_SCALES: tl.constexpr,
    ROPE_DIM: tl.constexpr,
    ROW_BYTES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    parts = fp8_parts(values_ptr + row * row_stride, dim_stride, NUM_SCALES, ROPE_DIM)
    store_fp8(out_ptr + row * ROW_BYTES, parts, NUM_SCALES, ROPE_DIM)


@triton.jit
def plain_values(
    values_ptr, dim_stride, QUERY_DIM: tl.constexpr, BLOCK: tl.constexpr, BF16: tl.constexpr
) -> tl.tensor:
    """A row [BLOCK] as it is stored: bits of bf16, or fp32."""
    dim = tl.arange(0, BLOCK)
    values = tl.load(values_ptr + dim * dim_stride, mask=dim < QUERY_DIM)
    return _bf16_bits(values) if BF16 else values.to(tl.float32)


@triton.jit
def store_plain(rows_ptr, row, values, QUERY_DIM: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """Writes `plain_values` to row `row` (int64)."""
    dim = tl.arange(0, BLOCK)
    typed_ptr = rows_ptr.to(tl.pointer_type(values.dtype))
    tl.store(typed_ptr + row * QUERY_DIM + dim, values, mask=dim < QUERY_DIM)


@triton.jit
def fp8_parts(
    values_ptr, dim_stride, NUM_SCALES: tl.constexpr, ROPE_DIM: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Codes [groups, 128], scales [groups] and rope bits of a row; of no rope part the scales."""
    group = tl.arange(0, NUM_SCALES)
    dim = group[:, None] * _SCALE_DIM + tl.arange(0, _SCALE_DIM)[None, :]
    values = tl.load(values_ptr + dim * dim_stride).to(tl.float32)
    scale = _power_of_two_scale(amax_or_nan(values, 1))
    codes = to_e4m3(quotient(values, scale[:, None]))
    if ROPE_DIM:
        source = (NUM_SCALES * _SCALE_DIM + tl.arange(0, ROPE_DIM)) * dim_stride
        rope = _bf16_bits(tl.load(values_ptr + source))
    else:
        rope = scale
    return codes, scale, rope


@triton.jit
def store_fp8(row_ptr, parts, NUM_SCALES: tl.constexpr, ROPE_DIM: tl.constexpr) -> None:
    """Writes `fp8_parts` to a row."""
    codes, scale, rope = parts
    group = tl.arange(0, NUM_SCALES)
    dim = group[:, None] * _SCALE_DIM + tl.arange(0, _SCALE_DIM)[None, :]
    tl.store(row_ptr + dim, codes)
    scale_ptr = (row_ptr + NUM_SCALES * _SCALE_DIM).to(tl.pointer_type(tl.float32))
    tl.store(scale_ptr + group, scale)
    if ROPE_DIM:
        rope_ptr = (row_ptr + NUM_SCALES * (_SCALE_DIM + 4)).to(tl.pointer_type(tl.int16))
        tl.store(rope_ptr + tl.arange(0, ROPE_DIM), rope)


@triton.jit
def _unpack_plain_kernel(
    rows_ptr, out_ptr, QUERY_DIM: tl.constexpr, BLOCK: tl.constexpr, BF16: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    dim = tl.arange(0, BLOCK)
    held = dim < QUERY_DIM
    typed_ptr = rows_ptr.to(tl.pointer_type(tl.bfloat16 if BF16 else tl.float32))
    values = tl.load(typed_ptr + row * QUERY_DIM + dim, mask=held)
    tl.store(out_ptr + row * QUERY_DIM + dim, values.to(tl.float32), mask=held)


@triton.jit
def _unpack_fp8_kernel(
    rows_ptr,
    out_ptr,
    NUM_SCALES: tl.constexpr,
    ROPE_DIM: tl.constexpr,
    ROW_BYTES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, NUM_SCALES)
    dim = group[:, None] * _SCALE_DIM + tl.arange(0, _SCALE_DIM)[None, :]  # [groups, 128]
    row_ptr = rows_ptr + row * ROW_BYTES
    scale_ptr = (row_ptr + NUM_SCALES * _SCALE_DIM).to(tl.pointer_type(tl.float32))
    scale = tl.load(scale_ptr + group)
    out_row_ptr = out_ptr + row * (NUM_SCALES * _SCALE_DIM + ROPE_DIM)
    values = from_e4m3(tl.load(row_ptr + dim)) * scale[:, None]
    tl.store(out_row_ptr + dim, rounded_for(values, out_ptr))
    if ROPE_DIM:
        rope = tl.arange(0, ROPE_DIM)
        rope_ptr = (row_ptr + NUM_SCALES * (_SCALE_DIM + 4)).to(tl.pointer_type(tl.bfloat16))
        tl.store(
            out_row_ptr + NUM_SCALES * _SCALE_DIM + rope,
            tl.load(rope_ptr + rope).to(out_ptr.dtype.element_ty),
        )


@triton.jit
def _power_of_two_scale(amax):
    bits = tl.div_rn(tl.maximum(amax, 1e-4), 448.0).to(tl.int32, bitcast=True)
    scale = ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)  # next power of two
    scale = tl.where(scale == float("inf"), 1.0, scale)  # infinite values saturate
    return tl.where(amax != amax, float("nan"), scale)


@triton.jit
def _bf16_bits(values):
    """Bits of the nearest bf16, int16: Triton's interpreter cuts its own cast off."""
    wide = values.to(tl.float32)
    bits = wide.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(wide != wide, 0x7FC0, rounded).to(tl.int16)
