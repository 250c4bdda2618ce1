"""Packed batches over paged rows: spread one out for selection, turn positions into rows."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.compare import check_equal
from benchmarks.ops.count import moved_work
from benchmarks.ops.inputs import positions
from benchmarks.ops.ours import triton_op
from benchmarks.ops.timing import Timed
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.locate_rows import locate_rows_ref
from hisparse_kernels.paged_batch import PagedBatch, lay_out_batch_ref

_TOPK, _CONTEXT = 2048, 64 * 1024
_BATCHES = (1, 8, 128)


def paged_cases() -> Iterator[Case]:
    """Batches of one row a sequence, whose pages are a table."""
    for batch in _BATCHES:
        yield Case(f"lay_out_batch batch {batch}, L=64K", partial(_lay_out, batch))
        yield Case(f"locate_rows batch {batch}, L=64K", partial(_locate, batch))


def _lay_out(num_seqs: int) -> Prepared:
    batch = _batch(num_seqs, "cuda")
    out = [torch.empty(num_seqs, dtype=torch.int32, device="cuda") for _ in range(2)]
    table = torch.empty_like(batch.kv_pages)
    lay_out = triton_op("lay_out_batch")

    def check() -> None:
        lay_out(batch, _CONTEXT, *out, table)
        expected = [torch.empty_like(one, device="cpu") for one in (*out, table)]
        lay_out_batch_ref(_on_cpu(batch), _CONTEXT, *expected)
        for found, wanted in zip((*out, table), expected, strict=True):
            check_equal("result", found.cpu(), wanted)

    work = moved_work(num_seqs, 8, 8, 2 * 4 * _CONTEXT // PAGE_TOKENS)
    return Prepared(work, Contender(check, Timed([partial(lay_out, batch, _CONTEXT, *out, table)])))


def _locate(num_seqs: int) -> Prepared:
    batch, listed = _batch(num_seqs, "cuda"), positions(num_seqs, _TOPK, _CONTEXT)
    num_pages = num_seqs * _CONTEXT // PAGE_TOKENS
    out = torch.empty_like(listed)
    locate = partial(triton_op("locate_rows"), listed, batch, num_pages, PAGE_TOKENS, out=out)

    def check() -> None:
        locate()
        expected = locate_rows_ref(listed.cpu(), _on_cpu(batch), num_pages, PAGE_TOKENS)
        check_equal("result", out.cpu(), expected)

    return Prepared(moved_work(num_seqs * _TOPK, 3 * 4), Contender(check, Timed([locate])))


def _batch(num_seqs: int, device: str) -> PagedBatch:
    """Sequences of the whole context, one row each, with pages in no order."""
    pages = torch.randperm(num_seqs * _CONTEXT // PAGE_TOKENS, device=device).int()
    return PagedBatch(
        qo_indptr=torch.arange(num_seqs + 1, dtype=torch.int32, device=device),
        kv_lens=torch.full((num_seqs,), _CONTEXT, dtype=torch.int32, device=device),
        kv_pages=pages.view(num_seqs, -1),
        kv_indptr=None,
        page_tokens=PAGE_TOKENS,
        causal=True,
    )


def _on_cpu(batch: PagedBatch) -> PagedBatch:
    tensors = batch.qo_indptr.cpu(), batch.kv_lens.cpu(), batch.kv_pages.cpu()
    return PagedBatch(*tensors, None, batch.page_tokens, batch.causal)
