"""Cases of resolve and release: hot buffer and block window, narrow and wide tables."""

from functools import partial

import torch

from hisparse_kernels.gpu.resolve import release_items_triton, resolve_triton
from hisparse_kernels.resolve import SlotRanges, SlotState
from tools.crosscompile.case import Case
from tools.crosscompile.cases_rows import miss_plan
from tools.crosscompile.tensors import (
    BLOCK_TOKENS,
    CONTEXT_TOKENS,
    HOT_SLOTS,
    NUM_SEQS,
    int32,
    int64,
)

_TABLES = {"int16": torch.int16, "int32": torch.int32}
_ROWS = ((1, 1), (3, 3), (NUM_SEQS, NUM_SEQS), (4 * NUM_SEQS, NUM_SEQS))  # rows, sequences


def cases() -> list[Case]:
    """Selected and appended items of both kinds of slots, and their release."""
    found = []
    for name, dtype in _TABLES.items():
        for kind, k, slots, entries in (
            ("hot buffer", 2048, HOT_SLOTS, CONTEXT_TOKENS),
            ("hot buffer, one slot more", 2048, HOT_SLOTS + 1, CONTEXT_TOKENS + 1),
            ("block window", 64, 128, CONTEXT_TOKENS // BLOCK_TOKENS),
            ("window append", 1, 128, CONTEXT_TOKENS // BLOCK_TOKENS),
        ):
            call = partial(_resolve, k, slots, entries, dtype)
            found.append(Case(f"resolve, {kind}, {name}", call))
        found.append(Case(f"release_items, {name}", partial(_release, dtype)))
    return found


def _resolve(k: int, slots: int, entries: int, dtype: torch.dtype) -> None:
    for rows, seqs in _ROWS:
        resolve_triton(
            int32(rows, k),
            int32(rows),
            _state(seqs * slots, seqs * entries, dtype),
            _ranges(seqs),
            int32(2),
            miss_plan(seqs, slots),
            int32(rows, k),
        )


def _release(dtype: torch.dtype) -> None:
    state = _state(NUM_SEQS * HOT_SLOTS, NUM_SEQS * CONTEXT_TOKENS, dtype)
    for seq, first_item in ((0, 0), (1, 1), (16, 4096)):
        release_items_triton(state, _ranges(NUM_SEQS), seq, first_item)


def _state(num_slots: int, entries: int, dtype: torch.dtype) -> SlotState:
    return SlotState(int32(num_slots), int32(num_slots), torch.empty(entries, dtype=dtype))


def _ranges(num_seqs: int) -> SlotRanges:
    return SlotRanges(int64(num_seqs), int64(num_seqs), int64(num_seqs))
