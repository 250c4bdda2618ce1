"""Rows of sequences whose index keys are all at hand, for tests of selectors alone."""

from dataclasses import replace

import torch

from hisparse_kernels.layouts import index_layout
from hisparse_sidecar.backends import choose_ops
from hisparse_sidecar.selection import SelectionQuery
from hisparse_sidecar.tuning.resident_keys import ResidentKeys, store_keys
from tests.pipeline import world

BLOCK_TOKENS, HEADS, TOPK = 64, 4, 96
LENGTH = 37 * BLOCK_TOKENS + 11
ROW_POS = (LENGTH - 1, 5, 63, 64, 1300, 447, 448, -1, 2047, 2111, LENGTH - 2, 900)


def stored_keys(kind: str = "random", num_sequences: int = 2) -> ResidentKeys:
    """`coherent` keys change slowly, `tied` keys are few different ones."""
    made = torch.Generator().manual_seed(3)
    keys = torch.randn(LENGTH, 128, generator=made)
    if kind == "coherent":
        steps = torch.randn(LENGTH // 40 + 1, 128, generator=made)
        keys = 3 * steps.repeat_interleave(40, 0)[:LENGTH] + keys
    if kind == "tied":
        keys = keys[torch.randint(0, 3, (LENGTH,), generator=made)]
    config = world.small_config()
    ops, layout = choose_ops(config), index_layout("fp8")
    stored = store_keys(ops, keys.to(config.device), num_sequences, BLOCK_TOKENS, layout)
    return ResidentKeys(ops, layout, stored, LENGTH, BLOCK_TOKENS)


def query_of(positions: tuple[int, ...] = ROW_POS) -> SelectionQuery:
    """One row at each position, in turn of each of two sequences; -1 = padding."""
    made = torch.Generator().manual_seed(4)
    rows = len(positions)
    row_pos = torch.tensor(positions, dtype=torch.int32)
    row_seq = torch.where(row_pos >= 0, torch.arange(rows) % 2, -1).int()
    index_q = torch.randn(rows, HEADS, 128, generator=made)
    weights = torch.randn(rows, HEADS, generator=made).abs()
    device = world.small_config().device
    tensors = (one.to(device) for one in (index_q, weights, row_seq, row_pos))
    return SelectionQuery(*tensors, topk=TOPK)


def one_row(query: SelectionQuery, row: int) -> SelectionQuery:
    """Row `row` alone."""
    return replace(query.rows(slice(row, row + 1)))
