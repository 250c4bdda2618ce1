"""Whole prefill chunks, small: the checks of ours and of dense attention pass, and can fail."""

from collections.abc import Iterator

import pytest
import torch

from benchmarks.ops.compare import WrongResultError
from benchmarks.ops.inputs import BF16_ROWS, FP8_ROWS
from benchmarks.select import hisa
from benchmarks.step import chunk_cases, dense_chunk
from hisparse_kernels.gpu.interpreter import interpreting
from hisparse_kernels.layouts import KvLayout
from tests.benchmarks.stand_ins import CudaIsCpu

_ROWS, _KEYS = 3, 1024
_SIZES = {hisa: {"TOPK": 64, "KEPT": 4}, chunk_cases: {"TOPK": 64, "INDEX_HEADS": 16, "_HEADS": 2}}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not interpreting():
        pytest.skip("Triton compiles here: the suite itself checks its cases")
    for module, sizes in _SIZES.items():
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)
    torch.manual_seed(0)
    with CudaIsCpu():
        yield


@pytest.mark.parametrize("layout", [BF16_ROWS, FP8_ROWS], ids=lambda layout: layout.name)
def test_a_chunk_and_dense_attention_pass_the_checks(layout: KvLayout) -> None:
    prepared = chunk_cases._prepare(_ROWS, _KEYS, layout)
    prepared.ours.check()
    assert len(prepared.ours.also) == 1  # attention, beside selection
    for call in (*prepared.ours.timed.calls, *prepared.ours.also[0].calls):
        call()
    ((name, make),) = prepared.peers.items()
    assert name == "dense attention, torch's FlashAttention"  # on a CPU
    dense = make()
    dense.check()
    assert dense.timed.calls[0]().shape == (1, 2, _ROWS, 192)  # type: ignore[attr-defined]


def test_another_scale_of_dense_attention_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = dense_chunk.DenseChunk(_ROWS, _KEYS, 2).contender()
    attend = dense_chunk.scaled_dot_product_attention
    monkeypatch.setattr(
        dense_chunk, "scaled_dot_product_attention", lambda *given: attend(*given, scale=0.1)
    )
    with pytest.raises(WrongResultError, match="out"):
        dense.check()
