"""Spill in Triton: rows are one run of words, cut into tiles."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.words import word_dtype
from hisparse_kernels.spill import HotPlaces

_TILE_BYTES = 8192


def spill_triton(
    rows: torch.Tensor,
    dst_row_ids: torch.Tensor,
    host_rows: torch.Tensor | None,
    hot: HotPlaces | None = None,
) -> None:
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
        *_arguments(hot),
        word,
        row_words,
        tile,
        num_warps=4,
        enable_fp_fusion=False,
    )


def _arguments(hot: HotPlaces | None) -> tuple[torch.Tensor | None, ...]:
    if hot is None:
        return (None,) * 6
    where = hot.item, hot.slot_table, hot.table_base, hot.slot_base
    return hot.rows, *where, hot.num_placed


@triton.jit
def _spill_kernel(
    rows_ptr,
    dst_ptr,
    host_ptr,
    num_rows,
    hot_ptr,
    item_ptr,
    table_ptr,
    table_base_ptr,
    slot_base_ptr,
    placed_ptr,
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
    if host_ptr is not None:
        tl.store(host_ptr.to(tl.pointer_type(WORD)) + dst * ROW_WORDS + column, source, mask=kept)
    if hot_ptr is not None:
        entry = tl.load(table_base_ptr + row, mask=kept, other=0)
        entry += tl.load(item_ptr + row, mask=kept, other=0)
        slot = tl.load(table_ptr + entry, mask=kept, other=-1).to(tl.int64)
        has_slot = slot >= 0
        slot += tl.load(slot_base_ptr + row, mask=has_slot, other=0)
        hot_word = slot * ROW_WORDS + column
        tl.store(hot_ptr.to(tl.pointer_type(WORD)) + hot_word, source, mask=has_slot)
        if placed_ptr is not None:
            first = (word < num_words) & (column == 0)
            tl.store(placed_ptr + row, has_slot.to(tl.int32), mask=first)
