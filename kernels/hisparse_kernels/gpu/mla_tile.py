"""One tile of keys in sparse attention: its ids, its stored rows, its step of the softmax."""

import triton
import triton.language as tl

from hisparse_kernels.gpu.e4m3 import from_e4m3
from hisparse_kernels.gpu.interpreter import interpreting
from hisparse_kernels.layouts import SCALE_DIM

_SCALE_DIM = tl.constexpr(SCALE_DIM)
_BLOCK_IDS = tl.constexpr(1024)  # ids in one step of the search for the last key
_INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def load_query(head_ptr, valid, dim_stride, first, COLUMNS: tl.constexpr) -> tl.tensor:
    """Dimensions [first, first + COLUMNS) of the heads at `head_ptr`; 0 if not valid."""
    # int64: heads or dimensions may be the outer ones of many rows
    dim = (first + tl.arange(0, COLUMNS)).to(tl.int64)
    return tl.load(head_ptr[:, None] + dim[None, :] * dim_stride, mask=valid[:, None], other=0.0)


@triton.jit
def key_range(ids_ptr, counts_ptr, row, split, topk, split_keys) -> tuple[tl.tensor, tl.tensor]:
    """Ids [first, end) of one split that the row may look at; `end` is after the last key."""
    first = split * split_keys
    end = tl.minimum(first + split_keys, topk)
    if counts_ptr is not None:
        end = tl.minimum(end, tl.load(counts_ptr + row))
    last = first
    for start in range(first, end, _BLOCK_IDS):
        key = start + tl.arange(0, _BLOCK_IDS)
        row_id = tl.load(ids_ptr + key, mask=key < end, other=-1)
        last = tl.maximum(last, tl.max(tl.where(row_id >= 0, key + 1, first), 0))
    return first, last


@triton.jit
def key_rows(
    kv_ptr, ids_ptr, start, end, row_stride, BLOCK_K: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Addresses [BLOCK_K] of a tile's stored rows, and which of them may be read."""
    key = start + tl.arange(0, BLOCK_K)
    row_id = tl.load(ids_ptr + key, mask=key < end, other=-1)
    valid = row_id >= 0
    # int64: pools pass 2**31 bytes
    return kv_ptr + tl.where(valid, row_id, 0).to(tl.int64) * row_stride, valid


@triton.jit
def load_codes(row_ptr, valid, LATENT: tl.constexpr) -> tl.tensor:
    """fp32 latent values [BLOCK_K, LATENT] of e4m3 rows with scales; 0 if not valid."""
    group = tl.arange(0, LATENT // _SCALE_DIM)
    column = group[:, None] * _SCALE_DIM + tl.arange(0, _SCALE_DIM)[None, :]
    code_ptr = row_ptr[:, None, None] + column[None, :, :]
    codes = tl.load(code_ptr, mask=valid[:, None, None], other=0)
    scale_ptr = (row_ptr + LATENT).to(tl.pointer_type(tl.float32))
    scale = tl.load(scale_ptr[:, None] + group[None, :], mask=valid[:, None], other=0.0)
    return tl.reshape(from_e4m3(codes) * scale[:, :, None], (row_ptr.shape[0], LATENT))


@triton.jit
def load_values(row_ptr, valid, first, COLUMNS: tl.constexpr, DTYPE: tl.constexpr) -> tl.tensor:
    """Columns [first, first + COLUMNS) of rows of `DTYPE`; 0 if not valid."""
    value_ptr = row_ptr.to(tl.pointer_type(DTYPE))
    column = first + tl.arange(0, COLUMNS)
    return tl.load(value_ptr[:, None] + column[None, :], mask=valid[:, None], other=0.0)


@triton.jit
def load_rope(
    row_ptr, valid, LAYOUT: tl.constexpr, LATENT: tl.constexpr, ROPE: tl.constexpr
) -> tl.tensor:
    """Rope values [BLOCK_K, ROPE] as they are stored; 0 if not valid."""
    if LAYOUT == "fp8":
        rope_ptr = row_ptr + (LATENT + LATENT // _SCALE_DIM * 4)
        rope = load_values(rope_ptr, valid, 0, ROPE, tl.bfloat16)
    elif LAYOUT == "bf16":
        rope = load_values(row_ptr, valid, LATENT, ROPE, tl.bfloat16)
    else:
        rope = load_values(row_ptr, valid, LATENT, ROPE, tl.float32)
    return rope


@triton.jit
def to_bf16(values) -> tl.tensor:
    """Nearest bf16 of each value, ties to even; in the interpreter as fp32.

    It cuts bits off where it should round, and multiplies the bare bits of bf16 operands.
    """
    if _INTERPRETED:
        wide = values.to(tl.float32)
        bits = wide.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        rounded = tl.where(wide == wide, bits.to(tl.float32, bitcast=True), wide)
    else:
        rounded = values.to(tl.bfloat16)
    return rounded


@triton.jit
def rounded_for(values, out_ptr) -> tl.tensor:
    """`values` in the dtype that is stored at `out_ptr`, nearest."""
    if out_ptr.dtype.element_ty == tl.bfloat16:
        result = to_bf16(values).to(tl.bfloat16)
    else:
        result = values.to(out_ptr.dtype.element_ty)
    return result


@triton.jit
def softmax_step(logits, most, total) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Takes a tile's logits (base 2, -inf = no key) into the running maximum and sum.

    Returns:
        The tile's weights, the factor of all sums so far, the new maximum, the new sum. After a
        first key a tile without one has weights 0 and the factor 1: it changes no bit.
    """
    new_most = tl.maximum(most, tl.max(logits, 1))
    base = tl.where(new_most == float("-inf"), 0.0, new_most)
    weights = tl.exp2(logits - base[:, None])
    factor = tl.exp2(most - base)
    return weights, factor, new_most, total * factor + tl.sum(weights, 1)
