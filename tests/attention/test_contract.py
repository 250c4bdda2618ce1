"""What plans and runs refuse, and what they say."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from hisparse_kernels.backends import reference_ops
from hisparse_sidecar import (
    BatchHiSparseMLAPagedAttentionWrapper,
    HisparseError,
    MLAPlanMetadata,
    SelectionConfig,
)
from hisparse_sidecar.config import ModelShape
from hisparse_sidecar.errors import InvalidArgument, WrongState
from tests.attention.batches import Batch, make_batch
from tests.attention.index_batches import make_index_batch

pytestmark = pytest.mark.cpu_only
Wrapper = BatchHiSparseMLAPagedAttentionWrapper
WORKSPACE = torch.empty(1 << 16, dtype=torch.uint8)


@pytest.fixture
def batch() -> Batch:
    return make_batch(((1, 70), (2, 65)))


def run_inputs(batch: Batch) -> dict[str, Any]:
    return {
        "query": batch.query,
        "kv_cache": batch.kv_cache,
        "topk_indices": batch.everything(),
    }


def test_an_unknown_backend_is_refused_with_the_sorted_list() -> None:
    message = "backend is 'fa3', must be one of auto, flash_mla, gluon_sm100, reference, triton"
    with pytest.raises(InvalidArgument, match=message):
        Wrapper(WORKSPACE, backend="fa3")
    with pytest.raises(ValueError, match=message):  # what FlashInfer raises
        Wrapper(WORKSPACE, False, None, None, None, None, "fa3")


def test_a_run_or_a_selection_before_a_plan_is_refused(batch: Batch) -> None:
    wrapper = Wrapper(WORKSPACE)
    with pytest.raises(WrongState, match="no plan, a run needs one: call plan first"):
        wrapper.run(**run_inputs(batch))
    with pytest.raises(WrongState, match="no plan"):
        wrapper.select()
    wrapper.plan(**batch.plan())
    with pytest.raises(WrongState, match="index_source is 'given'"):
        wrapper.select()


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"num_heads": 129}, "num_heads is 129, needs 1 to 128"),
        ({"num_heads": 0}, "num_heads is 0, needs 1 to 128"),
        ({"page_size": 0}, "page_size is 0, needs >= 1"),
        ({"topk": 0}, "topk is 0, needs >= 1"),
        ({"q_data_type": torch.float8_e4m3fn}, "q_data_type is torch.float8_e4m3fn, needs one of"),
        ({"kv_data_type": torch.float16}, r"has torch.float16 rows of 512 \+ 64, needs one of"),
        ({"head_dim_ckv": 256}, r"rows of 256 \+ 64, needs one of: torch.bfloat16 rows of 512"),
        ({"head_dim_kpe": 0}, r"has torch.float32 rows of 512 \+ 0, needs"),
        ({"split_keys": 96}, "split_keys is 96, needs 0 or a multiple of 64"),
        ({"index_source": "all"}, "index_source is 'all', must be one of flat, given, hisa, misa"),
        ({"lse_mode": "base10"}, "lse_mode is 'base10', must be one of base2, basee, none"),
        ({"query_layout": "both"}, "query_layout is 'both', must be one of packed, split"),
        (
            {"output_dtype": torch.bfloat16},
            "output_dtype is torch.bfloat16, needs .* torch.float32",
        ),
        ({"use_profiler": True}, "use_profiler is True, these backends need False"),
        ({"scale_mode": "bmm-scalar"}, "scale_mode is 'bmm-scalar', these backends need 'default'"),
        ({"enable_pdl": True}, "enable_pdl is True, these backends need None"),
        ({"causual": True}, "plan has no argument causual"),
        ({"metadata": object()}, r"metadata has \[\], needs \['qo_indptr', 'kv_len_arr'"),
        (
            {"metadata": None, "index_source": "flat", "max_seq_len": 9},
            "a selection needs metadata",
        ),
        ({"index_source": "flat"}, "max_seq_len is None, a selection needs the most tokens"),
        ({"index_source": None}, "index_source is a NoneType, needs a name or a SelectionConfig"),
        ({"lse_mode": []}, "lse_mode is a list, which no option is"),
        ({"sm_scale": float("nan")}, "sm_scale is nan, needs a finite number"),
        ({"sm_scale": float("-inf")}, "sm_scale is -inf, needs a finite number"),
        ({"sm_scale": "0.1"}, "sm_scale is '0.1', needs a finite number"),
        ({"sm_scale": 10**400}, "sm_scale is 1000.*, needs a finite number"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_and_the_last_one_stands(
    changed: dict[str, Any], match: str, batch: Batch
) -> None:
    wrapper = Wrapper(WORKSPACE)
    wrapper.plan(**batch.plan())
    wanted = wrapper.run(**run_inputs(batch))

    with pytest.raises(InvalidArgument, match=match):
        wrapper.plan(**batch.plan(**changed))

    assert torch.equal(wrapper.run(**run_inputs(batch)), wanted)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("num_heads", 3),
        ("head_dim_ckv", 512),
        ("head_dim_kpe", 64),
        ("page_size", 64),
        ("topk", 30),
        ("max_seq_len", 128),
        ("max_rows", 5),
        ("block_tokens", 64),
        ("split_keys", 64),
    ],
)
def test_a_float_is_no_size_and_plans_of_the_integer_stay_good(
    name: str, good: int, batch: Batch
) -> None:
    made = make_index_batch(batch, "reference")
    flat = made.plan(SelectionConfig("flat"), topk=31, max_seq_len=127)
    wrapper = Wrapper(WORKSPACE)
    for wrong in (float(good), True, torch.tensor(float(good)), str(good)):
        with pytest.raises(InvalidArgument, match=f"{name} is .*, a .*, needs an integer"):
            wrapper.plan(**flat | {name: wrong})

    wrapper.plan(**flat | {name: good})
    wanted = wrapper.select(**made.inputs())
    wrapper.plan(**flat | {name: torch.tensor(good)})  # has an index
    assert torch.equal(wrapper.select(**made.inputs()), wanted)


def test_a_float_is_no_number_of_a_selection_or_of_the_wrappers_splits() -> None:
    with pytest.raises(
        InvalidArgument, match=r"num_kept_blocks is 3\.0, a float, needs an integer"
    ):
        SelectionConfig("hisa", num_kept_blocks=3.0)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"split_keys is 64\.0, a float, needs an integer"):
        Wrapper(WORKSPACE, split_keys=64.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_a_model_has_a_finite_scale(scale: float) -> None:
    with pytest.raises(InvalidArgument, match=r"softmax_scale is .*, needs a finite number"):
        ModelShape(1, (0,), index_heads=1, topk=8, softmax_scale=scale)


def csr(**changed: torch.Tensor) -> MLAPlanMetadata:
    good = make_batch(((1, 70), (2, 65))).csr()
    names = ("qo_indptr", "kv_indptr", "kv_indices", "kv_len_arr")
    return MLAPlanMetadata(**{name: getattr(good, name) for name in names} | changed)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"qo_indptr": torch.zeros(3)}, "qo_indptr is torch.float32, needs torch.int32"),
        ({"kv_len_arr": torch.zeros(2).long()}, "kv_len_arr is torch.int64, needs torch.int32"),
        ({"qo_indptr": torch.zeros(2).int()}, "qo_indptr has 2 entries for 2 lengths, needs 3"),
        ({"kv_indptr": torch.zeros(4).int()}, "kv_indptr has 4 entries for 2 lengths, needs 3"),
        ({"kv_indices": torch.zeros(2, 2).int()}, "kv_indices has 2 dimensions, needs 1"),
        ({"kv_len_arr": torch.tensor(5).int()}, "kv_len_arr has 0 dimensions, needs 1"),
        ({"kv_indices": torch.zeros(8).int()[::2]}, "kv_indices has strides"),
        ({"kv_indptr": [0, 1, 2]}, "kv_indptr is a list, needs a tensor"),
        ({"kv_len_arr": torch.zeros(2, device="meta").int()}, "kv_len_arr is on meta, needs cpu"),
    ],
)
def test_metadata_that_do_not_fit_are_refused_with_both_numbers(
    changed: dict[str, Any], match: str, batch: Batch
) -> None:
    with pytest.raises(InvalidArgument, match=match):
        Wrapper(WORKSPACE).plan(**batch.plan(metadata=csr(**changed)))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (
            {"query": torch.zeros(5, 4, 576)},
            r"query has shape \(5, 4, 576\), needs \(any, 3, 576\)",
        ),
        (
            {"query": torch.zeros(5, 3, 576).bfloat16()},
            "query is torch.bfloat16, needs torch.float",
        ),
        ({"query": (torch.zeros(5, 3, 512), torch.zeros(5, 3, 60))}, r"needs widths \(512, 64\)"),
        ({"query": None}, "run has no query, needs query, or q_nope and q_pe"),
        ({"q_pe": torch.zeros(5, 3, 64)}, "run has query and q_pe, needs one form"),
        ({"query": None, "q_pe": torch.zeros(5, 3, 64)}, r"run has \['q_pe'\], needs query, or"),
        ({"kv_cache": torch.zeros(4, 32, 576)}, r"kv_cache has shape .* needs \(any, 64, 576\)"),
        ({"kv_cache": torch.zeros(4, 64, 576).bfloat16()}, "kv_cache is torch.bfloat16, needs"),
        ({"kv_cache": torch.zeros(4, 64, 577)[..., :576]}, "kv_cache has strides"),
        (
            {"kv_cache": (torch.zeros(4, 64, 512), torch.zeros(4, 64, 64))},
            "ckv_cache and kpe_cache lie apart, needs both as views of one",
        ),
        ({"kv_cache": torch.zeros(4, 1, 576).expand(4, 64, 576)}, "kv_cache has strides"),
        ({"kv_cache": torch.zeros(1, 64, 576).expand(4, 64, 576)}, "kv_cache has 0, needs pages"),
        (
            {"kv_cache": [torch.zeros(4, 64, 512), torch.zeros(4, 64, 64)]},
            "kv_cache is a list, needs a tensor, or a tuple of two",
        ),
        (
            {"kv_cache": (torch.zeros(4, 64, 512),) * 3},
            r"kv_cache is a tuple of 3 \(Tensor, Tensor, Tensor\), needs a tensor, or a tuple of",
        ),
        ({"query": [torch.zeros(5, 3, 512)] * 2}, "query is a list, needs a tensor, or a tuple"),
        ({"query": (torch.zeros(5, 3, 512), None)}, r"query is a tuple of 2 \(Tensor, NoneType\)"),
        (
            {"query": (torch.zeros(5, 3, 512), torch.zeros(5, 3, 64, device="meta"))},
            "query is a pair on cpu and meta, needs one device",
        ),
        ({"topk_indices": None}, "run has 0 of topk_indices, row_ids and index_q, needs one"),
        ({"row_ids": torch.zeros(5, 9).int()}, "run has 2 of topk_indices, row_ids and index_q"),
        ({"topk_indices": torch.zeros(4, 9).int()}, r"topk_indices has shape .* needs \(5, any\)"),
        ({"topk_indices": torch.zeros(5, 9).long()}, "topk_indices is torch.int64, needs"),
        ({"topk_indices": torch.zeros(5, 0).int()}, "topk_indices has 0 columns, needs >= 1"),
        ({"valid_counts": torch.zeros(4).int()}, r"valid_counts has shape \(4,\), needs \(5,\)"),
        ({"sinks": torch.zeros(4)}, r"sinks has shape \(4,\), needs \(3,\)"),
        ({"out": torch.zeros(5, 3, 576)}, r"out has shape .*, needs \(5, 3, 512\)"),
        ({"out": torch.zeros(5, 3, 512).bfloat16()}, "out is torch.bfloat16, needs torch.float32"),
        ({"out": torch.zeros(5, 3, 1024)[..., :512]}, "out has strides"),
        ({"lse": torch.zeros(5, 4)}, r"lse has shape \(5, 4\), needs \(5, 3\)"),
        ({"lse": torch.zeros(5, 3).double()}, "lse is torch.float64, needs torch.float32"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_with_both_numbers(
    changed: dict[str, Any], match: str, batch: Batch
) -> None:
    wrapper = Wrapper(WORKSPACE)
    wrapper.plan(**batch.plan())

    with pytest.raises(InvalidArgument, match=match):
        wrapper.run(**run_inputs(batch) | changed)

    wrapper.run(**run_inputs(batch))


@pytest.mark.parametrize(
    ("planned", "asked", "match"),
    [
        ("none", {"return_lse": True}, "plan is 'none', the run asks for 'base2'"),
        ("basee", {"return_lse": True}, "plan is 'basee', the run asks for 'base2'"),
        ("base2", {"return_lse_base_on_e": True}, "plan is 'base2', the run asks for 'basee'"),
        ("base2", {}, "plan is 'base2', the run asks for 'none'"),
    ],
)
def test_a_run_asks_for_the_planned_lse(
    planned: str, asked: dict[str, bool], match: str, batch: Batch
) -> None:
    wrapper = Wrapper(WORKSPACE)
    wrapper.plan(**batch.plan(), lse_mode=planned)
    with pytest.raises(InvalidArgument, match=f"lse_mode of the {match}"):
        wrapper.run(**run_inputs(batch), **asked)


@pytest.mark.parametrize("use_sinks", [True, False])
def test_sinks_are_given_where_they_are_planned(use_sinks: bool, batch: Batch) -> None:
    wrapper = Wrapper(WORKSPACE)
    wrapper.plan(**batch.plan(), use_sinks=use_sinks)
    with pytest.raises(InvalidArgument, match=f"use_sinks of the plan is {use_sinks}"):
        wrapper.run(**run_inputs(batch), sinks=None if use_sinks else torch.zeros(3))


def test_a_run_whose_query_requires_grad_gives_the_same_without_one(batch: Batch) -> None:
    wrapper = Wrapper(WORKSPACE)
    wrapper.plan(**batch.plan())
    wanted = wrapper.run(**run_inputs(batch))
    learned = batch.query.clone().requires_grad_()

    found = wrapper.run(**run_inputs(batch) | {"query": learned})

    assert torch.equal(found, wanted)
    assert not found.requires_grad


def test_positions_need_metadata_and_row_ids_do_not(batch: Batch) -> None:
    wrapper = Wrapper(WORKSPACE)
    wrapper.plan(**batch.plan(metadata=None))
    with pytest.raises(InvalidArgument, match="the plan has no metadata, topk_indices need it"):
        wrapper.run(**run_inputs(batch))
    lists = {"topk_indices": None, "row_ids": torch.full((5, 3), -1).int()}
    assert (wrapper.run(**run_inputs(batch) | lists) == 0).all()


def test_splits_that_the_workspace_cannot_hold_are_refused_if_they_were_asked_for(
    batch: Batch,
) -> None:
    wrapper = Wrapper(torch.empty(4000))
    wrapper.plan(**batch.plan(), split_keys=64)
    message = "holds 4000 fp32 values, 5 rows in splits of 64 need 15420"
    with pytest.raises(InvalidArgument, match=message):
        wrapper.run(**run_inputs(batch))
    wrapper.plan(**batch.plan())
    wrapper.run(**run_inputs(batch))


def test_a_plan_has_the_wrappers_splits_unless_it_says_its_own(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []
    ops = reference_ops()

    def note(*args: Any) -> Any:
        asked.append(args[-1].split_keys)
        return ops.sparse_mla(*args)

    noting = replace(ops, sparse_mla=note)
    monkeypatch.setattr("hisparse_sidecar.attention.wrapper.ops_of", lambda backend, device: noting)
    wrapper = Wrapper(WORKSPACE, split_keys=64)
    for changed in ({}, {"split_keys": 0}, {}, {"split_keys": 128}):  # lists of 75 keys
        wrapper.plan(**batch.plan(), **changed)
        wrapper.run(**run_inputs(batch))
    assert asked == [64, None, 64, None]
    with pytest.raises(InvalidArgument, match="split_keys is 96, needs 0 or a multiple of 64"):
        Wrapper(WORKSPACE, split_keys=96)


def test_errors_are_of_the_one_tree(batch: Batch) -> None:
    with pytest.raises(HisparseError):
        Wrapper(WORKSPACE).run(**run_inputs(batch))
    with pytest.raises(HisparseError):
        Wrapper(WORKSPACE).plan(**batch.plan(num_heads=0))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"page_size": 32}, "page_size is 32, index keys lie in pages of 64"),
        ({"block_tokens": 96}, "block_tokens is 96, needs a multiple of 64"),
        ({"max_seq_len": 0}, "max_seq_len is 0, a selection needs"),
        ({"max_rows": 0}, "max_rows is 0, needs >= 1"),
        ({"topk": 9000}, "64 blocks hold 8192 tokens, topk needs 9000"),
        (
            {"index_source": SelectionConfig("hisa", audit_one_in=8)},
            "audit_one_in is 8, a wrapper audits nothing",
        ),
        (
            {"pooled_table": torch.zeros(1, 1).int()},
            "pooled_table has 1 sequences and room for 64 blocks, needs 2 and 2",
        ),
        ({"pooled_table": torch.zeros(2, 1)}, "pooled_table is torch.float32, needs torch.int32"),
    ],
)
def test_a_selection_that_does_not_fit_is_refused(
    changed: dict[str, Any], match: str, batch: Batch
) -> None:
    good = {"index_source": "hisa", "topk": 64, "max_seq_len": 200}
    with pytest.raises(InvalidArgument, match=match):
        Wrapper(WORKSPACE).plan(**batch.plan() | good | changed)
