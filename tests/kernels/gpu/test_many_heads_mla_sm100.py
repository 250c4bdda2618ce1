"""The body of sparse attention for sm_100, which no GPU here runs: on an emulated machine.

Its functions run as they are, with Gluon's names emulated: TMA and tensor cores work late and in
any order that they may, fresh memory is NaN, and shared memory is seen only after a fence. So a
barrier that is missing or out of phase gives wrong results or a deadlock.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from accuracy import assert_bits_equal
from hisparse_kernels.gpu.attention_call import AttentionCall
from hisparse_kernels.gpu.gluon import many_heads_mla, many_heads_mla_sm100
from hisparse_kernels.gpu.gluon.many_heads_mla import many_heads_mla_gluon
from hisparse_kernels.gpu.gluon.many_heads_mla_sm100 import many_heads_mla_sm100_gluon
from hisparse_kernels.gpu.interpreter import interpreting
from hisparse_kernels.gpu.listed_often import dequantised
from hisparse_kernels.gpu.pipelines import sm100_attention_pipeline_of
from hisparse_kernels.gpu.sparse_mla import attend_rows
from hisparse_kernels.gpu.sparse_mla_sm100 import sparse_mla_sm100
from hisparse_kernels.sparse_mla import AttentionOptions
from tests.kernels.gluon_machine.language import EmulatedKernel
from tests.kernels.gpu.attention import BF16, F16, Attention, assert_matches, attention

pytestmark = pytest.mark.cpu_only
LAYOUTS = ["fp8_ds_mla", "fp8", "bf16"]
Results = tuple[torch.Tensor, torch.Tensor]
Attend = Callable[..., Results]


def _emulated(launcher: Callable[[AttentionCall], None]) -> Attend:
    def attend(case: Attention, **options: Any) -> Results:
        asked = AttentionOptions(**options)
        return attend_rows(lambda *_: launcher, False, *case.on("cpu"), asked)

    return attend


@pytest.fixture(params=[0, 1])
def attend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Attend:
    """The body for sm_100, its warps, copies and products in two orders."""
    kernel = many_heads_mla_sm100._many_heads_sm100_kernel
    emulated = EmulatedKernel(kernel, 1000 * request.param)
    monkeypatch.setattr(many_heads_mla_sm100, "_many_heads_sm100_kernel", emulated)
    return _emulated(many_heads_mla_sm100_gluon)


@pytest.fixture
def attend_as_sm90(monkeypatch: pytest.MonkeyPatch) -> Attend:
    """The body that runs on sm_90."""
    emulated = EmulatedKernel(many_heads_mla._many_heads_kernel, 0)
    monkeypatch.setattr(many_heads_mla, "_many_heads_kernel", emulated)
    return _emulated(many_heads_mla_gluon)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("heads", "topk", "dtype"),
    [(33, 1, BF16), (64, 64, BF16), (64, 200, F16), (65, 65, BF16), (128, 330, BF16)],
)
def test_results_match_the_reference(
    layout: str, heads: int, topk: int, dtype: torch.dtype, attend: Attend
) -> None:
    case = attention(2, heads, topk, layout=layout, dtype=dtype)
    assert_matches(attend(case), case.expected(), case.layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads", [64, 100])
def test_its_bits_are_those_of_the_body_that_runs_on_sm_90(
    layout: str, heads: int, attend: Attend, attend_as_sm90: Attend
) -> None:
    case = attention(2, heads, 300, layout=layout)
    case.row_ids[0, 64:192] = -1  # two tiles without a key

    for found, wanted in zip(attend(case), attend_as_sm90(case), strict=True):
        assert_bits_equal(found, wanted)


@pytest.mark.parametrize("heads", [64, 128])
def test_sinks_counts_and_rows_without_a_key(heads: int, attend: Attend) -> None:
    case = attention(5, heads, 200)
    case.row_ids[1] = -1
    case.row_ids[2, :-1] = -1  # its only key is in the last tile
    counts = torch.tensor([200, 200, 200, 70, 0], dtype=torch.int32)
    options = {"sink": torch.randn(heads), "valid_counts": counts}

    found = attend(case, **options)

    assert_matches(found, case.expected(**options), case.layout)
    assert not found[0][[1, 4]].any()


@pytest.mark.skipif(not interpreting(), reason="merges splits in Triton's interpreter")
@pytest.mark.parametrize(("layout", "heads"), [("fp8_ds_mla", 64), ("bf16", 100)])
def test_splits_are_merged(layout: str, heads: int, attend: Attend) -> None:
    case = attention(1, heads, 200, layout=layout)
    case.row_ids[0, 64:128] = -1  # a split without a key

    found = attend(case, split_keys=64)

    assert_matches(found, case.expected(), case.layout)


@pytest.mark.skipif(not interpreting(), reason="dequantises in Triton's interpreter")
@pytest.mark.parametrize("heads", [64, 128])
def test_rows_in_bf16_give_the_bits_of_the_fp8_rows_they_were(heads: int, attend: Attend) -> None:
    case = attention(2, heads, 150)
    values, bf16 = dequantised(case.pool, case.layout)

    for found, wanted in zip(
        attend(case), attend(replace(case, pool=values, layout=bf16)), strict=True
    ):
        assert_bits_equal(found, wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_may_lie_apart(layout: str, attend: Attend) -> None:
    case = attention(1, 64, 100, layout=layout)
    rows, row_bytes = case.pool.shape
    apart = torch.full((rows, row_bytes + 48), 0xFF, dtype=torch.uint8)[:, 32:-16]
    apart.copy_(case.pool)

    for found, wanted in zip(attend(replace(case, pool=apart)), attend(case), strict=True):
        assert_bits_equal(found, wanted)


def test_a_lone_row_may_have_any_stride(attend: Attend) -> None:
    case = attention(1, 64, 1, share_none=0.0)
    lone = torch.zeros(1, 1311, dtype=torch.uint8)[:, : case.layout.row_bytes]
    lone[0] = case.pool[case.row_ids[0, 0]]

    found = attend(replace(case, pool=lone, row_ids=torch.zeros(1, 1, dtype=torch.int32)))

    assert_matches(found, case.expected(), case.layout)


def test_only_who_asks_on_blackwell_gets_it() -> None:
    case = attention(1, 64, 64)
    query, pool, _, stored, _ = case.on("cpu")
    assert sm100_attention_pipeline_of(query, pool, stored) is None


@pytest.mark.skipif(not interpreting(), reason="in Triton's interpreter")
def test_elsewhere_its_op_is_tritons() -> None:
    case = attention(1, 64, 64)
    assert_matches(sparse_mla_sm100(*case.on("cpu")), case.expected(), case.layout)
