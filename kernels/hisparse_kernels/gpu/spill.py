"""Spill in Triton: rows are one run of words, cut into tiles."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.words import word_dtype

_TILE_BYTES = 8192


def spill_triton(rows: torch.Tensor, dst_row_ids: torch.Tensor, host_rows: torch.Tensor) -> None:
    """See `hisparse_kernels.spill.spill`."""
    num_rows, row_bytes = rows.shape
    if not num_rows:
        return
    word, word_bytes = word_dtype(row_bytes)
    row_words, tile = row_bytes // word_bytes, _TILE_BYTES // word_bytes
    grid = (triton.cdiv(num_rows * row_words, tile),)
    _spill_kernel[grid](
        rows.contiguous(),
        dst_row_ids.contiguous(),
        host_rows,
        num_rows,
        word,
        row_words,
        tile,
        num_warps=4,
        enable_fp_fusion=False,
    )


@triton.jit
def _spill_kernel(
    rows_ptr,
    dst_ptr,
    host_ptr,
    num_rows,
    WORD: tl.constexpr,
    ROW_WORDS: tl.constexpr,
    TILE: tl.constexpr,
):
    num_words = num_rows * ROW_WORDS  # here, so that Triton sees that 16-byte accesses end with it
    word = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row, column = word // ROW_WORDS, word % ROW_WORDS
    dst = tl.load(dst_ptr + row, mask=word < num_words, other=-1)  # int64
    kept = dst >= 0
    source = tl.load(rows_ptr.to(tl.pointer_type(WORD)) + word, mask=kept)
    tl.store(host_ptr.to(tl.pointer_type(WORD)) + dst * ROW_WORDS + column, source, mask=kept)
