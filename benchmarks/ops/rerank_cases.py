"""Scores of listed tokens with all heads: MISA-dagger's candidates, in prefill and in decode."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.compare import check_logits
from benchmarks.ops.count import INDEX_ROW_BYTES, logits_work
from benchmarks.ops.inputs import (
    INDEX,
    index_pages,
    index_queries,
    num_sets,
    page_tables,
    positions,
    sample_rows,
)
from benchmarks.ops.ours import triton_op
from benchmarks.ops.timing import Timed
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.score_positions import score_positions_ref

_HEADS, _CANDIDATES = 64, 8192
_CONTEXT = 64 * 1024
_PREFILL_ROWS = 4096


def rerank_cases() -> Iterator[Case]:
    rows = ((_PREFILL_ROWS, 1), (1, 1), (64, 64))
    for count, sequences in rows:
        name = (
            f"score_positions {count} rows x {_CANDIDATES} candidates of {sequences} sequences, "
            f"L={_CONTEXT // 1024}K, {_HEADS} heads"
        )
        yield Case(name, partial(_score, count, sequences))


def _score(rows: int, sequences: int) -> Prepared:
    score_positions = triton_op("score_positions")
    pages_each = _CONTEXT // PAGE_TOKENS
    sets = num_sets(sequences * _CONTEXT * INDEX_ROW_BYTES)
    pages = index_pages(sets * sequences * pages_each)
    tables = page_tables(sets, sequences, pages_each)
    query, weights = index_queries(rows, _HEADS)
    row_seq = (torch.arange(rows, device="cuda") % sequences).int()
    listed = positions(rows, _CANDIDATES, _CONTEXT)
    logits = torch.empty(rows, _CANDIDATES, device="cuda")

    def call(table: torch.Tensor) -> object:
        return score_positions(query, weights, pages, table, row_seq, listed, INDEX, out=logits)

    def check() -> None:
        call(tables[0])
        some = sample_rows(rows)
        where = pages, tables[0], row_seq[some], listed[some]
        expected = score_positions_ref(query[some], weights[some], *where, INDEX)
        check_logits("logits", logits[some], expected)

    pairs = rows * _CANDIDATES
    # rows of one sequence read the same keys again and again, from the L2 cache
    keys_read = min(pairs, sequences * _CONTEXT)
    timed = Timed([partial(call, table) for table in tables], long=rows == _PREFILL_ROWS)
    return Prepared(logits_work(pairs, rows, _HEADS, keys_read), Contender(check, timed))
