from dataclasses import replace

import pytest
import torch

from hisparse_kernels.append_rows import append_rows_ref
from hisparse_kernels.gpu.append_rows import append_rows_triton
from hisparse_kernels.layouts import (
    INDEX_LAYOUTS,
    KV_LAYOUTS,
    IndexLayout,
    KvLayout,
    index_layout,
    kv_layout,
)
from tests.kernels.gpu.appending import Given, Spans, given
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay

KV, INDEX = kv_layout("fp8_ds_mla"), index_layout("fp8")
KV_OF_ALL = pytest.mark.parametrize("layout", KV_LAYOUTS.values(), ids=KV_LAYOUTS.keys())
INDEX_OF_ALL = pytest.mark.parametrize("stored", INDEX_LAYOUTS.values(), ids=INDEX_LAYOUTS.keys())
NAN, INF = float("nan"), float("inf")

SPANS = [
    pytest.param(Spans([(0, 5, 6)]), id="one_row"),
    pytest.param(Spans([(1, 0, 1)], padding=1), id="first_row_of_a_sequence"),
    pytest.param(Spans([(2, 63, 64), (0, 64, 65), (1, 191, 192)], padding=3), id="block_edges"),
    pytest.param(
        Spans([(1, 62, 66), (2, 7, 10), (0, 190, 193)], padding=2), id="several_rows_each"
    ),
    pytest.param(Spans([(0, 60, 66), (1, 63, 65)], elsewhere=(1, 3, 6)), id="rows_of_other_ranks"),
    pytest.param(Spans([(2, 63, 130)]), id="blocks_that_begin_and_end_in_one_step"),
    pytest.param(Spans([], padding=5), id="padding_alone"),
    pytest.param(Spans([]), id="no_rows"),
]


def check(started: Given, device: str) -> Given:
    """Runs both twins on what is given; what the kernel has left."""
    expected, found = started.to("cpu"), started.to(device)
    expected.run(append_rows_ref)
    found.run(append_rows_triton)
    found.assert_same(expected)
    return found


@pytest.mark.parametrize("block_tokens", [64, 192])
@pytest.mark.parametrize("spans", SPANS)
@INDEX_OF_ALL
def test_every_byte_is_the_references(
    spans: Spans, stored: IndexLayout, block_tokens: int, device: str
) -> None:
    check(given(spans, KV, stored, block_tokens), device)


@KV_OF_ALL
@pytest.mark.parametrize("bare", [False, True], ids=["anchor", "shared"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kv_rows_of_every_layout_and_dtype(
    layout: KvLayout, bare: bool, dtype: torch.dtype, device: str
) -> None:
    spans = Spans([(0, 3, 6), (2, 70, 71)], padding=2, elsewhere=(1,))
    started = given(spans, layout, INDEX)
    check(replace(started, values=started.values.to(dtype), bare=bare), device)


@pytest.mark.parametrize("heads", [1, 3, 64, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_the_largest_index_inputs_of_each_row_are_found(
    heads: int, dtype: torch.dtype, device: str
) -> None:
    spans = Spans([(0, 3, 6), (2, 70, 71), (1, 0, 1)], padding=1)
    started = given(spans, KV, INDEX, heads=heads, query_dtype=dtype)
    index = started.index
    assert index.index_q is not None
    assert index.index_weights is not None
    index.index_q[0, -1, 127] = NAN
    index.index_q[1, 0, 0] = INF  # e4m3 has none: 448, or NaN in older versions of torch
    index.index_weights[2, heads - 1] = -INF
    index.index_weights[3, 0] = NAN

    largest = check(started, device).index.largest.cpu()

    wrong = ~largest.isfinite()
    second = not index.index_q[1, 0, 0].float().isfinite()
    assert wrong[0].tolist() == [True, second, False, False, False, True]
    assert wrong[1].tolist() == [False, False, True, True, False, True]
    assert wrong[2].tolist() == [False] * 5 + [True]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # interpreted
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_keys_that_are_not_finite_are_noted(value: float, device: str) -> None:
    started = given(Spans([(0, 3, 6)]), KV, INDEX).to(device)
    started.index.index_k[1, 100] = value

    started.run(append_rows_triton)

    assert started.index.largest[2].isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize(
    "missing", [("index_q",), ("index_weights",), ("index_q", "index_weights")]
)
def test_index_inputs_that_are_not_there_are_not_looked_at(
    missing: tuple[str, ...], device: str
) -> None:
    started = given(Spans([(0, 63, 66)]), KV, INDEX)
    check(replace(started, index=replace(started.index, **dict.fromkeys(missing))), device)


def test_a_block_without_a_slot_is_pooled_all_the_same(device: str) -> None:
    started = given(Spans([(0, 62, 66), (1, 63, 64)]), KV, INDEX)
    started.index.slot_table[0] = -1
    check(started, device)


def test_inputs_are_read_by_their_strides(device: str) -> None:
    started = given(Spans([(0, 62, 66), (1, 5, 6)], padding=1), KV, INDEX)
    wide = torch.randn(2, 6, 2 * 576)

    def strided(one: Given, source: torch.Tensor) -> Given:
        index = replace(
            one.index,
            index_k=source[0, :, 1:257:2],
            index_q=source[:, :, :1152].view(2, 6, 9, 128)[0, :, 2:5],
            index_weights=source[1, :, 10:40:10],
        )
        return replace(one, values=source[1, :, ::2], index=index)

    expected, found = strided(started, wide), strided(started.to(device), wide.to(device))
    expected.run(append_rows_ref)
    found.run(append_rows_triton)
    found.assert_same(expected)


@pytest.mark.gpu
@INDEX_OF_ALL
def test_a_graph_appends_the_rows_of_another_step(stored: IndexLayout) -> None:
    first = given(Spans([(0, 61, 62), (1, 5, 6)], padding=3), KV, stored).to("cuda")
    second = given(Spans([(0, 62, 65), (2, 127, 128)], padding=1), KV, stored, seed=1)

    def call() -> None:
        first.run(append_rows_triton)

    assert_allocates_nothing(call)
    names = list(second.tensors())
    held = [first.tensors()[name] for name in names]
    replay(call, held, [second.tensors()[name] for name in names])

    second.run(append_rows_ref)
    first.assert_same(second)


@pytest.mark.gpu
def test_many_rows_are_the_references_in_every_run() -> None:
    spans = [(seq, seq % 200, seq % 200 + 1 + seq % 3) for seq in range(200)]
    started = given(Spans(spans, padding=9), KV, INDEX, 128, heads=64, num_seqs=200)
    expected = started.to("cpu")
    expected.run(append_rows_ref)
    for _ in range(20):
        found = started.to("cuda")
        found.run(append_rows_triton)
        found.assert_same(expected)
