"""Prefill chunks: HISA's selection and sparse MLA together, beside dense attention."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.compare import ATTENTION, LSE, check_near
from benchmarks.ops.count import attention_work
from benchmarks.ops.inputs import BF16_ROWS, FP8_ROWS, kv_rows, sample_rows
from benchmarks.ops.ours import triton_op
from benchmarks.ops.timing import Timed
from benchmarks.ops.work import Work
from benchmarks.select.hisa import KEPT, TOPK, HisaSelection
from benchmarks.select.prefill_cases import HEADS as INDEX_HEADS
from benchmarks.select.prefill_cases import PREFILL_ROWS, prefill_work
from benchmarks.select.random_rows import prefill_rows
from benchmarks.select.residency import InOrder
from benchmarks.step.dense_chunk import DenseChunk
from hisparse_kernels.layouts import KvLayout
from hisparse_kernels.sparse_mla import AttentionOptions, sparse_mla_ref, split_workspace_size

_HEADS, _LATENT_DIM, _QUERY_DIM, _SCALE = 128, 512, 576, 576**-0.5


def chunk_cases() -> Iterator[Case]:
    """The last 4096 rows of a prompt, 128 heads."""
    for layout in (BF16_ROWS, FP8_ROWS):
        for keys in (64, 128):
            name = f"chunk of {PREFILL_ROWS} rows, L={keys}K, {layout.name}, {_HEADS} heads, whole"
            yield Case(name, partial(_prepare, PREFILL_ROWS, keys * 1024, layout))


def _prepare(count: int, keys: int, layout: KvLayout) -> Prepared:
    rows = prefill_rows("normal", count, keys, INDEX_HEADS)
    selection = HisaSelection(rows, InOrder(rows), TOPK, KEPT)
    attention = _Attention(selection.positions, kv_rows(keys, layout), layout)

    def check() -> None:
        selection.check()
        attention.check()

    timed = Timed([selection.run], long=True), Timed([attention.run], long=True)
    ours = Contender(check, timed[0], also=(timed[1],))
    work = attention_work(count, _HEADS, TOPK, keys, layout)
    dense = DenseChunk(count, keys - count // 2, _HEADS)  # as many pairs as a causal chunk has
    return Prepared(_both(work, prefill_work(rows)), ours, {dense.name: dense.contender})


def _both(attention: Work, selection: Work) -> Work:
    """Bytes of both, and the products of attention: those of selection are in another precision."""
    total = attention.device_bytes + selection.device_bytes
    return replace(attention, device_bytes=total)


class _Attention:
    """Sparse MLA over the rows that a selection lists; row i of the cache is token i."""

    def __init__(self, lists: torch.Tensor, kv: torch.Tensor, layout: KvLayout) -> None:
        rows = len(lists)
        self._lists, self._kv, self._layout = lists, kv, layout
        self._op = triton_op("sparse_mla")
        size = split_workspace_size(rows, _HEADS, TOPK, layout, None)
        self._workspace = torch.empty(size, device="cuda")
        self._query = torch.randn(rows, _HEADS, _QUERY_DIM, device="cuda", dtype=torch.bfloat16)
        self._out = (
            torch.empty(rows, _HEADS, _LATENT_DIM, dtype=torch.bfloat16, device="cuda"),
            torch.empty(rows, _HEADS, device="cuda"),
        )

    def run(self) -> None:
        given = self._query, self._kv, self._lists, self._layout, _SCALE
        self._op(
            *given, AttentionOptions(split_keys=None, out=self._out, workspace=self._workspace)
        )

    def check(self) -> None:
        self.run()
        some = sample_rows(len(self._lists))
        given = self._query[some], self._kv, self._lists[some], self._layout, _SCALE
        for name, found, expected, limit in zip(
            ("out", "lse"), self._out, sparse_mla_ref(*given), (ATTENTION, LSE), strict=True
        ):
            check_near(name, found[some], expected, limit)
