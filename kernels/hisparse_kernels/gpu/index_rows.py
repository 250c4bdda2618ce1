"""Index rows in Triton: quantise keys and queries, and move rows into pages and out of them."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.e4m3 import amax_or_nan, from_e4m3, quotient, to_e4m3
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS, IndexLayout

_DIM = tl.constexpr(INDEX_DIM)
_PAGE_TOKENS = tl.constexpr(PAGE_TOKENS)
_TILE_ROWS = 16
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


def pack_index_rows_triton(
    keys: torch.Tensor, layout: IndexLayout, out: torch.Tensor | None = None
) -> torch.Tensor:
    """See `hisparse_kernels.index_rows.pack_index_rows`."""
    num_rows = keys.shape[0]
    if out is None:
        out = keys.new_empty(num_rows, layout.row_bytes, dtype=torch.uint8)
    if num_rows:
        _pack_kernel[_row_grid(num_rows)](
            keys,
            out,
            num_rows,
            *keys.stride(),
            _is_fp8(layout),
            _TILE_ROWS,
            **_OPTIONS,
        )
    return out


def unpack_index_rows_triton(
    rows: torch.Tensor, layout: IndexLayout, out: torch.Tensor | None = None
) -> torch.Tensor:
    """See `hisparse_kernels.index_rows.unpack_index_rows`."""
    num_rows = rows.shape[0]
    if out is None:
        out = rows.new_empty(num_rows, INDEX_DIM, dtype=torch.float32)
    if num_rows:
        _unpack_kernel[_row_grid(num_rows)](
            rows.contiguous(), out, num_rows, _is_fp8(layout), _TILE_ROWS, **_OPTIONS
        )
    return out


def write_index_rows_triton(
    index_pages: torch.Tensor, row_ids: torch.Tensor, rows: torch.Tensor, layout: IndexLayout
) -> None:
    """See `hisparse_kernels.index_rows.write_index_rows`."""
    if rows.shape[0]:
        _move(_write_kernel, index_pages, row_ids, rows.contiguous(), layout)


def read_index_rows_triton(
    index_pages: torch.Tensor,
    row_ids: torch.Tensor,
    layout: IndexLayout,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `hisparse_kernels.index_rows.read_index_rows`."""
    num_rows = row_ids.shape[0]
    if out is None:
        out = index_pages.new_empty(num_rows, layout.row_bytes)
    if num_rows:
        _move(_read_kernel, index_pages, row_ids, out, layout)
    return out


def quantize_index_q_triton(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `hisparse_kernels.index_rows.quantize_index_q`."""
    rows, heads = index_weights.shape
    if out is None:
        codes = index_q.new_empty(index_q.shape, dtype=torch.float8_e4m3fn)
        out = codes, index_weights.new_empty(rows, heads)
    if rows * heads:
        _quantize_q_kernel[_row_grid(rows * heads)](
            index_q,
            index_weights,
            out[0].view(torch.uint8),
            out[1],
            rows * heads,
            heads,
            *index_q.stride(),
            *index_weights.stride(),
            _TILE_ROWS,
            **_OPTIONS,
        )
    return out


def _row_grid(num_rows: int) -> tuple[int]:
    return (triton.cdiv(num_rows, _TILE_ROWS),)


def _is_fp8(layout: IndexLayout) -> bool:
    return layout.name == "fp8"


def _move(
    kernel: triton.JITFunction,
    index_pages: torch.Tensor,
    row_ids: torch.Tensor,
    rows: torch.Tensor,
    layout: IndexLayout,
) -> None:
    kernel[_row_grid(rows.shape[0])](
        index_pages,
        row_ids.contiguous(),
        rows,
        rows.shape[0],
        _is_fp8(layout),
        _TILE_ROWS,
        **_OPTIONS,
    )


@triton.jit
def key_scale(amax) -> tl.tensor:
    """Scale of keys of that largest magnitude."""
    scale = tl.div_rn(tl.where(amax < 1e-10, 1e-10, amax), 448.0)
    return tl.where(amax != amax, float("nan"), scale)


@triton.jit
def stored_words(row_id, FP8: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Where row `row_id` (int64) of the pages lies: 4-byte word of its codes, and of its scale."""
    page, offset = row_id // _PAGE_TOKENS, row_id % _PAGE_TOKENS
    row_words: tl.constexpr = _DIM // 4 if FP8 else _DIM
    page_word = page * (_PAGE_TOKENS * (row_words + 1 if FP8 else row_words))
    return page_word + offset * row_words, page_word + _PAGE_TOKENS * row_words + offset


@triton.jit
def stored_key(key, FP8: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """A key [128] fp32 as it is stored, codes or fp32, and its scale."""
    scale = key_scale(amax_or_nan(key, 0))
    stored = to_e4m3(quotient(key, scale)) if FP8 else key
    return stored, scale


@triton.jit
def key_values(stored, scale, FP8: tl.constexpr) -> tl.tensor:
    """The values [128] fp32 of a stored key."""
    return from_e4m3(stored) * scale if FP8 else stored


@triton.jit
def store_in_pages(pages_ptr, row_id, stored, scale, FP8: tl.constexpr) -> None:
    """Writes a stored key to row `row_id` (int64) of the pages; -1 = skip."""
    if row_id >= 0:
        codes_at, scale_at = stored_words(row_id, FP8)
        _store_parts(pages_ptr, codes_at, scale_at, stored, scale, FP8)


@triton.jit
def store_packed(rows_ptr, row, stored, scale, FP8: tl.constexpr) -> None:
    """Writes a stored key to row `row` (int64) of packed rows; -1 = skip."""
    if row >= 0:
        codes_at = row * (_DIM // 4 + 1 if FP8 else _DIM)
        _store_parts(rows_ptr, codes_at, codes_at + _DIM // 4, stored, scale, FP8)


@triton.jit
def _store_parts(out_ptr, codes_at, scale_at, stored, scale, FP8: tl.constexpr) -> None:
    dim = tl.arange(0, _DIM)
    float_ptr = out_ptr.to(tl.pointer_type(tl.float32))
    if FP8:
        tl.store(out_ptr + codes_at * 4 + dim, stored)
        tl.store(float_ptr + scale_at, scale)
    else:
        tl.store(float_ptr + codes_at + dim, stored)


@triton.jit
def write_row(pages_ptr, row_id, rows_ptr, row, FP8: tl.constexpr) -> None:
    """Copies packed rows [tile] to rows `row_id` [tile] of the pages; -1 = skip."""
    pages_ptr = pages_ptr.to(tl.pointer_type(tl.int32))
    rows_ptr = rows_ptr.to(tl.pointer_type(tl.int32))
    row_words: tl.constexpr = _DIM // 4 if FP8 else _DIM
    word = tl.arange(0, row_words)[None, :]
    kept = row_id >= 0
    codes_at, scale_at = stored_words(row_id, FP8)
    source_ptr = rows_ptr + row * (row_words + 1 if FP8 else row_words)
    codes = tl.load(source_ptr[:, None] + word, mask=kept[:, None])
    tl.store(pages_ptr + codes_at[:, None] + word, codes, mask=kept[:, None])
    if FP8:
        tl.store(pages_ptr + scale_at, tl.load(source_ptr + row_words, mask=kept), mask=kept)


@triton.jit
def _pack_kernel(
    keys_ptr, out_ptr, num_rows, row_stride, dim_stride, FP8: tl.constexpr, ROWS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, _DIM)[None, :]
    held = row < num_rows
    key_ptr = keys_ptr + row[:, None] * row_stride + dim * dim_stride
    keys = tl.load(key_ptr, mask=held[:, None], other=0.0).to(tl.float32)
    if FP8:
        scale = key_scale(amax_or_nan(keys, 1))
        codes = to_e4m3(quotient(keys, scale[:, None]))
        tl.store(out_ptr + row[:, None] * (_DIM + 4) + dim, codes, mask=held[:, None])
        scale_ptr = out_ptr.to(tl.pointer_type(tl.float32)) + row * (_DIM // 4 + 1) + _DIM // 4
        tl.store(scale_ptr, scale, mask=held)
    else:
        out_ptr = out_ptr.to(tl.pointer_type(tl.float32))
        tl.store(out_ptr + row[:, None] * _DIM + dim, keys, mask=held[:, None])


@triton.jit
def _unpack_kernel(rows_ptr, out_ptr, num_rows, FP8: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, _DIM)[None, :]
    held = row < num_rows
    if FP8:
        codes = tl.load(rows_ptr + row[:, None] * (_DIM + 4) + dim, mask=held[:, None], other=0)
        scale_ptr = rows_ptr.to(tl.pointer_type(tl.float32)) + row * (_DIM // 4 + 1) + _DIM // 4
        keys = from_e4m3(codes) * tl.load(scale_ptr, mask=held, other=0.0)[:, None]
    else:
        key_ptr = rows_ptr.to(tl.pointer_type(tl.float32)) + row[:, None] * _DIM + dim
        keys = tl.load(key_ptr, mask=held[:, None])
    tl.store(out_ptr + row[:, None] * _DIM + dim, keys, mask=held[:, None])


@triton.jit
def _write_kernel(
    pages_ptr, row_ids_ptr, rows_ptr, num_rows, FP8: tl.constexpr, ROWS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_id = tl.load(row_ids_ptr + row, mask=row < num_rows, other=-1)
    write_row(pages_ptr, row_id, rows_ptr, row, FP8)


@triton.jit
def _read_kernel(pages_ptr, row_ids_ptr, out_ptr, num_rows, FP8: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    held = row < num_rows
    row_id = tl.load(row_ids_ptr + row, mask=held, other=0)
    pages_ptr = pages_ptr.to(tl.pointer_type(tl.int32))
    row_words: tl.constexpr = _DIM // 4 if FP8 else _DIM
    word = tl.arange(0, row_words)[None, :]
    codes_at, scale_at = stored_words(row_id, FP8)
    target_ptr = out_ptr.to(tl.pointer_type(tl.int32)) + row * (row_words + 1 if FP8 else row_words)
    codes = tl.load(pages_ptr + codes_at[:, None] + word, mask=held[:, None])
    tl.store(target_ptr[:, None] + word, codes, mask=held[:, None])
    if FP8:
        tl.store(target_ptr + row_words, tl.load(pages_ptr + scale_at, mask=held), mask=held)


@triton.jit
def _quantize_q_kernel(
    q_ptr,
    weights_ptr,
    codes_ptr,
    out_weights_ptr,
    num_pairs,
    heads,
    q_row_stride,
    q_head_stride,
    dim_stride,
    w_row_stride,
    w_head_stride,
    PAIRS: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)  # one row's one head
    row, head = pair // heads, pair % heads
    dim = tl.arange(0, _DIM)[None, :]
    held = pair < num_pairs
    vector_ptr = q_ptr + row * q_row_stride + head * q_head_stride
    vector_ptr = vector_ptr[:, None] + dim * dim_stride
    vectors = tl.load(vector_ptr, mask=held[:, None], other=0.0).to(tl.float32)
    scale = key_scale(amax_or_nan(vectors, 1))
    codes = to_e4m3(quotient(vectors, scale[:, None]))
    tl.store(codes_ptr + pair[:, None] * _DIM + dim, codes, mask=held[:, None])
    weight = tl.load(weights_ptr + row * w_row_stride + head * w_head_stride, mask=held, other=0.0)
    tl.store(out_weights_ptr + pair, weight * scale, mask=held)
