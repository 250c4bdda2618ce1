"""Index logits: prefill rows at the end of a prompt, and paged decode, beside DeepGEMM."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.compare import check_logits
from benchmarks.ops.count import INDEX_ROW_BYTES, logits_work, prefill_pairs
from benchmarks.ops.inputs import (
    INDEX,
    head_lists,
    index_keys,
    index_pages,
    index_queries,
    num_sets,
    page_tables,
    sample_rows,
)
from benchmarks.ops.ours import triton_op
from benchmarks.ops.peers import Peers
from benchmarks.ops.timing import Timed
from hisparse_kernels.index_logits import index_logits_ref, paged_index_logits_ref
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS

_ROWS = 4096
_PAGED = ((1, 64), (8, 64), (64, 64), (1, 128), (8, 128), (64, 128), (1, 1024), (8, 1024))


def logits_cases(peers: Peers) -> Iterator[Case]:
    for keys in (32, 64, 128):
        for heads in (64, 32):
            name = f"index_logits {_ROWS} rows, L={keys}K, {heads} heads"
            yield Case(name, partial(_prefill, peers, keys * 1024, heads))
    for picked in (8, 16):
        name = f"index_logits {_ROWS} rows, L=64K, MISA h={picked} of 64"
        yield Case(name, partial(_prefill, peers, 64 * 1024, 64, picked))
    for batch, keys in _PAGED:
        name = f"paged_index_logits batch {batch}, L={keys}K, 64 heads"
        yield Case(name, partial(_paged, peers, batch, keys * 1024, 64))


def _prefill(peers: Peers, keys: int, heads: int, picked: int | None = None) -> Prepared:
    """All heads, or `picked` ones of each row; DeepGEMM scores with all."""
    index_logits = triton_op("index_logits")
    rows = index_keys(keys)
    query, weights = index_queries(_ROWS, heads)
    start = torch.zeros(_ROWS, dtype=torch.int32, device="cuda")
    end = keys - _ROWS + 1 + torch.arange(_ROWS, dtype=torch.int32, device="cuda")
    logits = torch.empty(_ROWS, keys, device="cuda")
    sample = sample_rows(_ROWS)
    some = query[sample], weights[sample], rows, start[sample], end[sample]
    lists = None if picked is None else head_lists(_ROWS, heads, picked)

    def call() -> object:
        return index_logits(query, weights, rows, start, end, INDEX, out=logits, heads=lists)

    def check() -> None:
        call()
        few = None if lists is None else lists[sample]
        check_logits("logits", logits[sample], index_logits_ref(*some, INDEX, heads=few))

    def deep_gemm() -> Contender:
        score = peers.deep_gemm().prefill
        codes = rows[:, :INDEX_DIM].contiguous().view(torch.float8_e4m3fn)
        scales = rows[:, INDEX_DIM:].contiguous().view(torch.float32)[:, 0]
        arguments = query, codes, scales, weights, start, end

        def check_peer() -> None:
            found = score(*arguments)[sample, :keys]
            outside = torch.arange(keys, device="cuda") >= end[sample, None]
            expected = logits[sample] if lists is None else index_logits_ref(*some, INDEX)
            check_logits("DeepGEMM", found.masked_fill(outside, -torch.inf), expected)

        return Contender(check_peer, Timed([lambda: score(*arguments)], long=True))

    work = logits_work(prefill_pairs(_ROWS, keys), _ROWS, picked or heads, keys)
    return Prepared(work, Contender(check, Timed([call], long=True)), {"DeepGEMM": deep_gemm})


def _paged(peers: Peers, batch: int, keys: int, heads: int) -> Prepared:
    paged_index_logits = triton_op("paged_index_logits")
    sets = num_sets(batch * keys * INDEX_ROW_BYTES)
    pages_each = keys // PAGE_TOKENS
    pages = index_pages(sets * batch * pages_each)
    tables = page_tables(sets, batch, pages_each)
    query, weights = index_queries(batch, heads)
    row_seq = torch.arange(batch, dtype=torch.int32, device="cuda")
    row_end = torch.full((batch,), keys, dtype=torch.int32, device="cuda")
    logits = torch.empty(batch, keys, device="cuda")

    def call(table: torch.Tensor) -> object:
        return paged_index_logits(query, weights, pages, table, row_seq, row_end, INDEX, out=logits)

    def check() -> None:
        call(tables[0])
        sample = sample_rows(batch)
        some = query[sample], weights[sample], pages, tables[0], row_seq[sample], row_end[sample]
        check_logits("logits", logits[sample], paged_index_logits_ref(*some, INDEX))

    def deep_gemm() -> Contender:
        score = peers.deep_gemm().paged(query, pages, weights, row_end, keys)

        def check_peer() -> None:
            call(tables[0])
            check_logits("DeepGEMM", score(tables[0])[:, :keys], logits)

        return Contender(check_peer, Timed([partial(score, table) for table in tables]))

    calls = [partial(call, table) for table in tables]
    work = logits_work(batch * keys, batch, heads, batch * keys)
    return Prepared(work, Contender(check, Timed(calls)), {"DeepGEMM": deep_gemm})
