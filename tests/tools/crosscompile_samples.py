"""Small kernels for the tests of tools/crosscompile: some clean, each other one with one fault."""

from functools import partial

import torch
import triton
import triton.language as tl

from tools.crosscompile.case import Case, Expects
from tools.crosscompile.ptx import GATHER4

FUSED = {"enable_fp_fusion": True}


@triton.jit
def _copy_kernel(src_ptr, dst_ptr, ids_ptr, row_words, BLOCK: tl.constexpr):
    row = tl.load(ids_ptr + tl.program_id(0))
    word = tl.arange(0, BLOCK)
    kept = word < row_words
    values = tl.load(src_ptr + row * row_words + word, mask=kept)
    tl.store(dst_ptr + tl.program_id(0).to(tl.int64) * row_words + word, values, mask=kept)


@triton.jit
def _attention_kernel(
    query_ptr, rows_ptr, ids_ptr, out_ptr, topk, HEADS: tl.constexpr, DIM: tl.constexpr
):
    head, column, key = tl.arange(0, HEADS), tl.arange(0, DIM), tl.arange(0, 64)
    at = tl.program_id(0).to(tl.int64) * HEADS * DIM + head[:, None] * DIM + column[None, :]
    query = tl.load(query_ptr + at)
    total = tl.zeros([HEADS, DIM], tl.float32)
    for first in range(0, topk, 64):
        ids = tl.load(ids_ptr + tl.program_id(0) * topk + first + key).to(tl.int64)
        rows = tl.load(rows_ptr + ids[:, None] * DIM + column[None, :])
        weights = tl.exp(tl.dot(query, tl.trans(rows)))
        total = tl.dot(weights.to(tl.bfloat16), rows, total)
    tl.store(out_ptr + at, total.to(tl.bfloat16))


@triton.jit
def _product_kernel(left_ptr, right_ptr, out_ptr, DEPTH: tl.constexpr, PRECISION: tl.constexpr):
    row, depth, column = tl.arange(0, 64), tl.arange(0, DEPTH), tl.arange(0, 16)
    left = tl.load(left_ptr + row[:, None] * DEPTH + depth[None, :])
    right = tl.load(right_ptr + depth[:, None] * 16 + column[None, :])
    if PRECISION is None:
        product = tl.dot(left, right)
    else:
        product = tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision=PRECISION)
    tl.store(out_ptr + row[:, None] * 16 + column[None, :], product)


@triton.jit
def _spilling_kernel(values_ptr, out_ptr, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    values = tl.load(values_ptr + place)
    tl.debug_barrier()  # all values are held at once
    tl.store(out_ptr + place, values * tl.sum(values))


def _copy(row_words: int, *, grid: tuple[int, ...] = (64,), **options: bool) -> None:
    src, dst = (torch.empty(rows, row_words, dtype=torch.int32) for rows in (1 << 22, 64))
    ids = torch.empty(64, dtype=torch.int64)
    options = options or FUSED
    _copy_kernel[grid](src, dst, ids, row_words, 512, num_warps=4, **options)


def _attention(heads: int) -> None:
    query = torch.empty(4096, heads, 512, dtype=torch.bfloat16)
    rows = torch.empty(1 << 22, 512, dtype=torch.bfloat16)
    ids = torch.empty(4096, 2048, dtype=torch.int32)
    out = torch.empty_like(query)
    _attention_kernel[(4096,)](
        query, rows, ids, out, 2048, heads, 512, num_warps=8, num_stages=1, **FUSED
    )


def _product(*, precision: str | None = None, num_warps: int = 4) -> None:
    left = torch.empty(64, 64, dtype=torch.bfloat16)
    right = torch.empty(64, 16, dtype=torch.bfloat16)
    out = torch.empty(64, 16)
    _product_kernel[(1,)](left, right, out, 64, precision, num_warps=num_warps, **FUSED)


def _spill() -> None:
    values = torch.empty(4096)
    _spilling_kernel[(1,)](values, values, 4096, num_warps=1, maxnreg=32, **FUSED)


def _broken() -> None:
    raise ValueError("heads must be 64")


def cases() -> list[Case]:
    product, copy = Expects(matrix_unit=True), Expects(wide=("src_ptr", "dst_ptr"))
    return [
        Case("clean copy", partial(_copy, 512), copy),
        Case("clean product", _product, product),
        Case("wide gather", partial(_attention, 64), Expects(True, ("rows_ptr", "out_ptr"))),
        Case("overflow", partial(_attention, 128), product),
        Case("scalar copy", partial(_copy, 165), copy),
        Case("widened product", partial(_product, precision="ieee"), product),
        Case("tf32 product", partial(_product, precision="tf32")),
        Case("two warps", partial(_product, num_warps=2), product),
        Case("one accumulator", _product, Expects(accumulator_columns=128)),
        Case("no matrix unit", partial(_copy, 512), Expects(accumulator_columns=128)),
        Case("spill", _spill),
        Case("tall grid", partial(_copy, 512, grid=(1, 70_000))),
        Case("fusion unsaid", partial(_copy, 512, debug=False)),
        Case("broken", _broken),
        Case("nothing", lambda: None),
        Case("no gather4", _product, Expects(instructions=(GATHER4,))),
        Case("rows read", partial(_copy, 512), Expects(unread=("src_ptr",))),
        Case("no such argument", partial(_copy, 512), Expects(wide=("pages_ptr",))),
    ]
