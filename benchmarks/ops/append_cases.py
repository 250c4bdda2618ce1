"""Rows of a decode step, which one launch writes: of an anchor layer, and of one that shares."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.compare import check_equal
from benchmarks.ops.count import append_rows_work
from benchmarks.ops.inputs import FP8_ROWS, INDEX, index_pages, index_queries, num_sets
from benchmarks.ops.ours import triton_op
from benchmarks.ops.pinned import PinnedPool
from benchmarks.ops.timing import Timed
from hisparse_kernels.append_rows import IndexSide, StepRows, append_rows_ref
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS, KvLayout
from hisparse_kernels.resolve import SlotRanges

_BLOCK_TOKENS, _HEADS = 128, 64
_OPEN_TOKENS = 100  # of a block of 128: none is closed
_Call = tuple[torch.Tensor, KvLayout, StepRows, torch.Tensor, torch.Tensor, IndexSide | None]
_Part = TypeVar("_Part", StepRows, IndexSide, SlotRanges)


def append_cases(pool: PinnedPool) -> Iterator[Case]:
    for rows in (1, 8, 64):
        for kind in ("anchor", "shared"):
            name = f"append_rows {rows} rows of {rows} sequences, {kind} layer"
            yield Case(name, partial(_append, pool, rows, is_anchor=kind == "anchor"))


def _append(pool: PinnedPool, rows: int, *, is_anchor: bool) -> Prepared:
    append_rows = triton_op("append_rows")
    work = append_rows_work(rows, FP8_ROWS.row_bytes, _HEADS if is_anchor else 0)
    packed = torch.zeros(rows, FP8_ROWS.row_bytes, dtype=torch.uint8, device="cuda")
    where = _step_rows(rows), pool.rows(FP8_ROWS.row_bytes)[: rows * PAGE_TOKENS], packed
    side = _index_side(pool, rows) if is_anchor else None

    def call() -> _Call:
        values = torch.randn(rows, FP8_ROWS.query_dim, device="cuda", dtype=torch.bfloat16)
        return values, FP8_ROWS, *where, None if side is None else _with_inputs(side)

    calls = [call() for _ in range(num_sets(work.device_bytes))]

    def check() -> None:
        expected = _on_cpu(calls[0])
        append_rows_ref(*expected)
        append_rows(*calls[0])
        for name, wanted in _written(expected).items():
            check_equal(name, _written(calls[0])[name].cpu(), wanted)

    timed = Timed([partial(append_rows, *call) for call in calls])
    return Prepared(work, Contender(check, timed))


def _with_inputs(side: IndexSide) -> IndexSide:
    rows = len(side.index_k)
    query, weights = index_queries(rows, _HEADS)
    keys = torch.randn(rows, INDEX_DIM, device="cuda", dtype=torch.bfloat16)
    return replace(side, index_k=keys, index_q=query, index_weights=weights)


def _step_rows(rows: int) -> StepRows:
    """One row of each sequence, each on a host page of its own."""
    number = torch.arange(rows, dtype=torch.int32, device="cuda")
    host_row_ids = number.long() * PAGE_TOKENS + _OPEN_TOKENS % PAGE_TOKENS
    return StepRows(number, torch.full_like(number, _OPEN_TOKENS), host_row_ids)


def _index_side(pool: PinnedPool, rows: int) -> IndexSide:
    """The state of sequences that have one block each; host arrays lie apart in the pool."""
    number = torch.arange(rows, device="cuda")
    keys, pooled = torch.empty(rows, INDEX_DIM, device="cuda"), pool.rows(INDEX.row_bytes)
    middle = len(pooled) // 2
    return IndexSide(
        index_k=keys,
        index_q=None,
        index_weights=None,
        largest=torch.empty(3, rows, device="cuda"),
        window_pages=index_pages(rows * _BLOCK_TOKENS // PAGE_TOKENS),
        slot_table=torch.zeros(rows, dtype=torch.int16, device="cuda"),
        window=SlotRanges(number, torch.ones_like(number), number),
        host_pages=pool.rows(INDEX.page_bytes)[-rows:],
        host_pooled=pooled[middle : middle + rows],
        open_sums=torch.zeros(rows, INDEX_DIM, device="cuda"),
        state_rows=number,
        pooled_pages=index_pages(rows),
        pooled_base=number * PAGE_TOKENS,
        block_tokens=_BLOCK_TOKENS,
        layout=INDEX,
    )


def _on_cpu(call: _Call) -> _Call:
    """A copy of every tensor in host memory."""
    values, layout, rows, host_rows, packed, side = call
    if side is not None:
        side = _copied(replace(side, window=_copied(side.window)))
    places = host_rows.cpu().clone(), packed.cpu().clone()
    return values.cpu(), layout, _copied(rows), *places, side


def _copied(part: _Part) -> _Part:
    # a tensor that is on the CPU, as in tests, is copied by `clone` alone
    tensors: dict[str, Any] = {
        name: one for name, one in vars(part).items() if isinstance(one, torch.Tensor)
    }
    return replace(part, **{name: one.cpu().clone() for name, one in tensors.items()})


def _written(call: _Call) -> dict[str, torch.Tensor]:
    """What a call has written, by name."""
    *_, host_rows, packed, side = call
    found = {"host_rows": host_rows, "packed": packed}
    if side is None:
        return found
    names = ("largest", "window_pages", "host_pages", "open_sums", "pooled_pages")
    return found | {name: getattr(side, name) for name in names}
