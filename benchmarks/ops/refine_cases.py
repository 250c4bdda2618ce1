"""Scores inside each row's own blocks: prefill rows of one prompt, and decode rows of many."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.compare import check_logits
from benchmarks.ops.count import INDEX_ROW_BYTES, logits_work
from benchmarks.ops.inputs import (
    INDEX,
    block_lists,
    index_pages,
    index_queries,
    num_sets,
    sample_rows,
)
from benchmarks.ops.ours import triton_op
from benchmarks.ops.timing import Timed
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.refine_logits import refine_logits_ref

_BLOCK_TOKENS, _KEPT = 128, 64
_PAGES_PER_BLOCK = _BLOCK_TOKENS // PAGE_TOKENS
_PREFILL_ROWS = 4096
_CONTEXT = 128 * 1024


def refine_cases() -> Iterator[Case]:
    for keys, heads in ((64, 64), (128, 64), (128, 32)):
        name = f"refine_logits {_PREFILL_ROWS} rows x {_KEPT} blocks, L={keys}K, {heads} heads"
        yield Case(name, partial(_prefill, keys * 1024, heads))
    for batch in (1, 8, 64):
        name = f"refine_logits batch {batch} x {_KEPT} blocks, 64 heads"
        yield Case(name, partial(_decode, batch, 64))


def _prefill(keys: int, heads: int) -> Prepared:
    row_pos = keys - _PREFILL_ROWS + torch.arange(_PREFILL_ROWS, dtype=torch.int32, device="cuda")
    ids = block_lists(_PREFILL_ROWS, _KEPT, row_pos // _BLOCK_TOKENS)
    pages = index_pages(keys // PAGE_TOKENS)
    visible = (row_pos[:, None] - ids * _BLOCK_TOKENS + 1).clamp(0, _BLOCK_TOKENS)
    work = logits_work(int(visible.sum()), _PREFILL_ROWS, heads, keys)
    return Prepared(work, _contender(heads, pages, [ids], ids, row_pos, long=True))


def _decode(batch: int, heads: int) -> Prepared:
    sets = num_sets(batch * _KEPT * _BLOCK_TOKENS * INDEX_ROW_BYTES)
    num_slots = sets * batch * _KEPT
    slots = torch.randperm(num_slots, device="cuda").int().view(sets, batch, _KEPT)
    row_pos = torch.full((batch,), _CONTEXT - 1, dtype=torch.int32, device="cuda")
    ids = block_lists(batch, _KEPT, row_pos // _BLOCK_TOKENS)
    pages = index_pages(num_slots * _PAGES_PER_BLOCK)
    pairs = batch * _KEPT * _BLOCK_TOKENS
    work = logits_work(pairs, batch, heads, pairs)
    return Prepared(work, _contender(heads, pages, list(slots), ids, row_pos, long=False))


def _contender(
    heads: int,
    pages: torch.Tensor,
    slots: list[torch.Tensor],
    ids: torch.Tensor,
    row_pos: torch.Tensor,
    *,
    long: bool,
) -> Contender:
    refine_logits = triton_op("refine_logits")
    rows = len(row_pos)
    query, weights = index_queries(rows, heads)
    logits = torch.empty(rows, _KEPT * _BLOCK_TOKENS, device="cuda")

    def call(block_slots: torch.Tensor) -> object:
        where = pages, block_slots, ids, row_pos
        return refine_logits(query, weights, *where, _BLOCK_TOKENS, INDEX, out=logits)

    def check() -> None:
        call(slots[0])
        sample = sample_rows(rows)
        expected = torch.empty(len(sample), logits.shape[1], device="cuda")
        some = query[sample], weights[sample], pages, slots[0][sample], ids[sample], row_pos[sample]
        refine_logits_ref(*some, _BLOCK_TOKENS, INDEX, out=expected)
        check_logits("logits", logits[sample], expected)

    return Contender(check, Timed([partial(call, one) for one in slots], long=long))
