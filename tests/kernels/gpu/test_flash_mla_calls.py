"""What the backend `flash_mla` asks of FlashMLA: with a stand-in for it, on the CPU."""

import logging
import sys
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from accuracy import assert_bits_equal
from hisparse_kernels.gpu import sparse_mla_flash
from hisparse_kernels.gpu.backend import flash_mla_ops, triton_ops
from hisparse_kernels.gpu.flash_mla import FlashMlaAbsentError, flash_mla_module
from hisparse_kernels.gpu.interpreter import interpreting
from hisparse_kernels.gpu.sparse_mla import sparse_mla_triton
from hisparse_kernels.gpu.sparse_mla_flash import sparse_mla_flash as attend
from hisparse_kernels.layouts import KV_LAYOUTS
from hisparse_kernels.sparse_mla import AttentionOptions, sparse_mla_ref
from tests.kernels.gpu.attention import SCALE, Attention, attention
from tests.kernels.gpu.flash_pools import in_pool

pytestmark = [
    pytest.mark.cpu_only,
    pytest.mark.skipif(not interpreting(), reason="the interpreter is for machines without a GPU"),
]


@dataclass
class StandIn:
    """Answers by the reference, in FlashMLA's form; notes its calls and its schedules' uses."""

    calls: list[Any] = field(default_factory=list)
    schedules: list[Any] = field(default_factory=list)
    waits: int = 0
    captures: bool = False

    def get_mla_metadata(self) -> tuple[Any, None]:
        self.schedules.append(SimpleNamespace(uses=0))
        return self.schedules[-1], None

    def flash_mla_with_kvcache(
        self,
        query: torch.Tensor,
        pages: torch.Tensor,
        block_table: None,
        cache_seqlens: None,
        head_dim_v: int,
        schedule: Any,
        **named: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert (block_table, cache_seqlens, head_dim_v) == (None, None, 512)
        assert named.pop("is_fp8_kvcache")
        assert named.pop("use_legacy")
        schedule.uses += 1
        self.calls.append(SimpleNamespace(kernel="decode", pages=pages, **named))
        rows = pages.flatten(0, 1)[:, 0]
        lists, sink = named["indices"][:, 0], named["attn_sink"]
        out, lse = self._attend(query[:, 0], rows, lists, "fp8_ds_mla", sink)
        return out[:, None], lse[:, :, None]

    def flash_mla_sparse_fwd(
        self,
        query: torch.Tensor,
        values: torch.Tensor,
        indices: torch.Tensor,
        scale: float,
        **n: Any,
    ) -> tuple[torch.Tensor, None, torch.Tensor]:
        assert scale == SCALE
        assert n.pop("use_legacy")
        self.calls.append(SimpleNamespace(kernel="prefill", values=values, indices=indices, **n))
        rows = values[:, 0].view(torch.uint8)
        out, lse = self._attend(query, rows, indices[:, 0], "bf16", n["attn_sink"])
        return out, None, lse

    @staticmethod
    def _attend(
        query: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, layout: str, sink: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = sparse_mla_ref(
            query, rows, ids, KV_LAYOUTS[layout], SCALE, AttentionOptions(sink=sink)
        )
        return out, lse.masked_fill(lse == -torch.inf, torch.inf)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn()

    def wait() -> None:
        found.waits += 1

    monkeypatch.setattr(sparse_mla_flash, "flash_mla_module", lambda device: found)
    monkeypatch.setattr(sparse_mla_flash, "_schedules", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: found.captures)
    stream = SimpleNamespace(synchronize=wait)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return found


def decode_case(rows: int = 2, topk: int = 64, multiple: int = 64) -> Attention:
    return in_pool(attention(rows, 64, topk), multiple)


def assert_is_the_reference(found: Any, case: Attention, **options: Any) -> None:
    lists = case.query, case.pool, case.row_ids, case.layout, SCALE
    for one, other in zip(found, sparse_mla_ref(*lists, AttentionOptions(**options)), strict=True):
        assert_bits_equal(one, other)


def test_only_attention_is_not_triton_s() -> None:
    assert replace(flash_mla_ops(), sparse_mla=sparse_mla_triton) == triton_ops()
    assert flash_mla_ops().sparse_mla is attend


def test_decode_gets_pages_of_64_and_lists_as_they_are(module: StandIn) -> None:
    case = decode_case()
    case.row_ids[0] = -1
    sink = torch.randn(64)

    found = attend(*case.on("cpu"), AttentionOptions(sink=sink))

    (call,) = module.calls
    assert call.pages.shape == (len(case.pool) // 64, 64, 1, 656)
    assert call.pages.data_ptr() == case.pool.data_ptr()
    assert call.indices.shape == (2, 1, 64)
    assert (call.softmax_scale, call.attn_sink is sink) == (SCALE, True)
    assert_is_the_reference(found, case, sink=sink)
    assert torch.isneginf(found[1][0]).all()


def test_results_go_to_the_places_that_are_given(module: StandIn) -> None:
    case = decode_case()
    out = torch.full((2, 64, 512), torch.nan, dtype=torch.bfloat16), torch.full((2, 64), torch.nan)

    found = attend(*case.on("cpu"), AttentionOptions(out=out))

    assert found is out
    assert_is_the_reference(out, case)


@pytest.mark.parametrize("pad_bytes", [0, 16])
def test_other_pools_go_in_pages_of_one_row_without_a_copy(pad_bytes: int, module: StandIn) -> None:
    case = decode_case(multiple=64 if pad_bytes else 63)
    padded = torch.nn.functional.pad(case.pool, (0, pad_bytes))
    case = replace(case, pool=padded[:, :656])

    found = attend(*case.on("cpu"))

    (call,) = module.calls
    assert call.pages.shape == (len(case.pool), 1, 1, 656)
    assert call.pages.stride() == (656 + pad_bytes, 656, 656, 1)
    assert call.pages.data_ptr() == case.pool.data_ptr()
    assert_is_the_reference(found, case)


@pytest.mark.parametrize("topk", [64, 1088])
def test_what_is_behind_the_counts_is_none(topk: int, module: StandIn) -> None:
    case = decode_case(4, topk)
    counts = torch.tensor([0, 1, topk - 1, topk + 7]).int()

    found = attend(*case.on("cpu"), AttentionOptions(valid_counts=counts))

    behind = torch.arange(topk) >= counts[:, None]
    (call,) = module.calls
    assert torch.equal(call.indices[:, 0], case.row_ids.masked_fill(behind, -1))
    assert_is_the_reference(found, case, valid_counts=counts)


def test_a_schedule_is_made_once_for_a_shape_and_kept(module: StandIn) -> None:
    for _ in range(3):
        attend(*decode_case().on("cpu"))
    others = decode_case(3), decode_case(topk=128), decode_case(multiple=63)
    for other in others:
        attend(*other.on("cpu"))

    assert [schedule.uses for schedule in module.schedules] == [3, 1, 1, 1]
    assert module.waits == 4  # for another stream may use one at once


def test_of_two_first_calls_at_once_the_schedule_that_is_kept_stays(
    module: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, answer = decode_case(), module.flash_mla_with_kvcache

    def answer_beside_another(*args: Any, **named: Any) -> Any:
        monkeypatch.setattr(module, "flash_mla_with_kvcache", answer)
        attend(*case.on("cpu"))
        return answer(*args, **named)

    monkeypatch.setattr(module, "flash_mla_with_kvcache", answer_beside_another)
    attend(*case.on("cpu"))
    attend(*case.on("cpu"))

    assert [schedule.uses for schedule in module.schedules] == [1, 2]


def test_schedules_of_many_rows_are_not_kept(
    module: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_mla_flash, "_MOST_KEPT", 1)
    for _ in range(2):
        attend(*decode_case().on("cpu"))

    assert [schedule.uses for schedule in module.schedules] == [1, 1]
    assert module.waits == 0


def test_a_schedule_that_is_only_captured_is_not_kept(
    module: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    module.captures = True
    with caplog.at_level(logging.WARNING):
        attend(*decode_case().on("cpu"))
    module.captures = False
    attend(*decode_case().on("cpu"))
    module.captures = True
    attend(*decode_case().on("cpu"))

    assert [schedule.uses for schedule in module.schedules] == [1, 2]
    assert module.waits == 1
    (record,) = caplog.records
    assert "captured before it was run" in record.message


@pytest.mark.parametrize(
    ("layout", "topk", "kernel"),
    [("bf16", 128, "prefill"), ("fp8_ds_mla", 128, "prefill"), ("fp8_ds_mla", 64, "decode")],
)
def test_rows_that_are_listed_often_go_to_the_kernel_for_prefill(
    layout: str, topk: int, kernel: str, module: StandIn
) -> None:
    case = attention(24, 64, topk, layout=layout)
    sink = torch.randn(64)
    case.row_ids[3] = -1

    found = attend(*case.on("cpu"), AttentionOptions(sink=sink))

    (call,) = module.calls
    assert (call.kernel, call.attn_sink is sink) == (kernel, True)
    assert torch.isneginf(found[1][3]).all()
    assert_is_the_reference(found, case, sink=sink)


def test_large_pools_are_not_dequantised(module: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    case = attention(24, 64, 128)
    monkeypatch.setattr(sparse_mla_flash, "MOST_UNPACKED", len(case.pool) - 1)

    attend(*case.on("cpu"))

    assert [call.kernel for call in module.calls] == ["decode"]


@pytest.mark.parametrize("rows", [0, 2])
def test_of_no_queries_or_no_rows_nothing_is_asked(rows: int, module: StandIn) -> None:
    case = decode_case()
    case = replace(case, query=case.query[:rows], row_ids=case.row_ids[:rows].fill_(-1))
    case = replace(case, pool=case.pool[:0])

    out, lse = attend(*case.on("cpu"))

    assert (out.shape, out.dtype, module.calls) == ((rows, 64, 512), torch.bfloat16, [])
    assert not out.any()
    assert torch.isneginf(lse).all()


def test_inputs_that_lie_askew_are_copied(module: StandIn) -> None:
    case = decode_case()
    askew = torch.empty(2 * 64 + 1, dtype=torch.int32)[1:].view(2, 64).copy_(case.row_ids)
    assert askew.data_ptr() % 16
    query = case.query.expand(2, 2, -1, -1).transpose(0, 1)[:, 0]

    found = attend(query, case.pool, askew, case.layout, SCALE)

    (call,) = module.calls
    assert call.indices.data_ptr() % 16 == 0
    assert_is_the_reference(found, case)


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        (attention(2, 24, 64), {}, "24 heads, flash_mla needs 64 or 128"),
        (attention(2, 64, 96), {}, "lists have 96 ids"),
        (attention(2, 64, 64, layout="bf16"), {}, "lists have 64 ids, .* 128 over bf16 rows"),
        (attention(2, 64, 64, layout="fp8"), {}, "rows are fp8, 528 B"),
        (attention(2, 64, 64, dtype=torch.float32), {}, "queries are torch.float32"),
        (attention(2, 64, 64), {"split_keys": 64}, "split_keys is 64"),
    ],
)
def test_nothing_else_attends_to_what_flash_mla_does_not(
    case: Attention, options: dict[str, Any], message: str, module: StandIn
) -> None:
    with pytest.raises(ValueError, match=message):
        attend(*case.on("cpu"), AttentionOptions(**options))
    assert module.calls == []


def test_where_flash_mla_does_not_run_it_is_not_called() -> None:
    with pytest.raises(FlashMlaAbsentError, match="flash_mla needs sm_90, found device 'cpu'"):
        attend(*decode_case().on("cpu"))


@pytest.mark.parametrize(
    ("capability", "found", "message"),
    [
        ((8, 0), None, "needs sm_90, found sm_80"),
        ((10, 0), None, "needs sm_90, found sm_100"),
        ((9, 0), None, "flash_mla is not installed: "),
        ((9, 0), SimpleNamespace(), "flash_mla does not load: .* no attribute 'has_legacy'"),
        ((9, 0), SimpleNamespace(has_legacy=lambda: False), "was built without its kernels"),
    ],
)
def test_it_says_why_flash_mla_does_not_run(
    capability: tuple[int, int], found: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setitem(sys.modules, "flash_mla", found)
    with pytest.raises(FlashMlaAbsentError, match=message):
        flash_mla_module(torch.device("cuda"))
