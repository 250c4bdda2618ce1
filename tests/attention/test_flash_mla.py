"""The wrapper with the backend `flash_mla`: what it refuses early, and what it attends to."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from hisparse_kernels.backends import reference_ops
from hisparse_kernels.sparse_mla import AttentionOptions
from hisparse_sidecar import BatchHiSparseMLAPagedAttentionWrapper, SelectionConfig
from hisparse_sidecar.errors import InvalidArgument
from tests.attention.batches import Batch, make_batch
from tests.attention.test_row_ids import expected, listed_rows
from tests.kernels.gpu.attention import BF16, assert_matches

Wrapper = BatchHiSparseMLAPagedAttentionWrapper
SHORT = ((1, 70), (3, 130), (2, 1))
WORKSPACE = torch.empty(1 << 16, dtype=torch.uint8)


def flash_batch(**changed: Any) -> Batch:
    made = {"layout": "fp8_ds_mla", "dtype": BF16, "heads": 64} | changed
    return make_batch(SHORT, **made)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[AttentionOptions]:
    """Options of each call of attention, by the reference: the backend needs a GPU."""
    calls: list[AttentionOptions] = []
    ops = reference_ops()

    def attend(*inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(inputs[-1])
        return ops.sparse_mla(*inputs)

    made = replace(ops, sparse_mla=attend)
    monkeypatch.setattr("hisparse_sidecar.attention.wrapper.ops_of", lambda backend, device: made)
    return calls


@pytest.mark.cpu_only
def test_on_the_cpu_it_is_refused() -> None:
    message = "backend is 'flash_mla' on device 'cpu', needs a GPU of sm_90"
    with pytest.raises(InvalidArgument, match=message):
        Wrapper(WORKSPACE, backend="flash_mla")


@pytest.mark.cpu_only
@pytest.mark.parametrize("split_keys", [0, 256])
def test_splits_are_refused_when_a_wrapper_is_made(
    split_keys: int, asked: list[AttentionOptions]
) -> None:
    message = f"split_keys is {split_keys}, flash_mla splits by the batch: needs None"
    with pytest.raises(InvalidArgument, match=message):
        Wrapper(WORKSPACE, backend="flash_mla", split_keys=split_keys)
    Wrapper(WORKSPACE, backend="triton", split_keys=split_keys)


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_heads": 16}, "queries have 16 heads"),
        ({"q_data_type": torch.float16}, "queries are torch.float16"),
        ({"head_dim_kpe": 0}, "KV rows are fp8, 528 B"),
        ({"kv_data_type": torch.float32}, "KV rows are fp32"),
        ({"split_keys": 128}, "split_keys is 128"),
        (
            {"index_source": SelectionConfig("flat"), "max_seq_len": 130, "topk": 96},
            "lists have 96 ids, flash_mla needs a multiple of 64 over fp8_ds_mla rows",
        ),
    ],
)
def test_a_plan_refuses_what_flash_mla_does_not_do(
    changed: dict[str, Any], message: str, asked: list[AttentionOptions]
) -> None:
    wrapper, batch = Wrapper(WORKSPACE, backend="flash_mla"), flash_batch()
    with pytest.raises(InvalidArgument, match=message):
        wrapper.plan(**batch.plan(**changed))


@pytest.mark.cpu_only
def test_a_run_refuses_lists_of_other_lengths(asked: list[AttentionOptions]) -> None:
    wrapper, batch = Wrapper(WORKSPACE, backend="flash_mla"), flash_batch()
    wrapper.plan(**batch.plan())
    inputs = {"query": batch.query, "kv_cache": batch.kv_cache}
    with pytest.raises(InvalidArgument, match="lists have 66 ids"):
        wrapper.run(**inputs, row_ids=listed_rows(batch, 66)[0])
    with pytest.raises(InvalidArgument, match="lists have 135 ids"):
        wrapper.run(**inputs, topk_indices=batch.everything())
    assert asked == []


@pytest.mark.cpu_only
def test_flash_mla_is_asked_for_no_splits_and_writes_where_it_likes(
    asked: list[AttentionOptions],
) -> None:
    wrapper, batch = Wrapper(WORKSPACE, backend="flash_mla"), flash_batch()
    wrapper.plan(**batch.plan())
    ids, counts = listed_rows(batch, 128)
    lists = {"row_ids": ids, "valid_counts": counts}

    wrapper.run(query=batch.query, kv_cache=batch.kv_cache, **lists)

    (options,) = asked
    assert options == AttentionOptions(valid_counts=options.valid_counts)
    assert options.valid_counts is counts


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_flash_mla")
@pytest.mark.parametrize("layout", ["fp8_ds_mla", "bf16"])
@pytest.mark.parametrize("heads", [64, 128])
def test_row_ids_counts_and_positions_choose_the_rows(heads: int, layout: str) -> None:
    batch = flash_batch(device="cuda", layout=layout, heads=heads, num_pages=40)
    wrapper = Wrapper(WORKSPACE.cuda(), backend="flash_mla")
    ids, counts = listed_rows(batch, 128)
    inputs = {"query": batch.query, "kv_cache": batch.kv_cache, "return_lse": True}
    out = torch.empty(batch.rows, heads, 512, dtype=BF16, device="cuda")
    wrapper.plan(**batch.plan())

    found = wrapper.run(**inputs, row_ids=ids, valid_counts=counts, return_lse_base_on_e=True)
    base2 = wrapper.run(**inputs, row_ids=ids, valid_counts=counts, out=out)

    wanted = expected(batch, ids, counts)
    assert_matches(found, wanted, batch.layout)
    assert base2[0] is out
    assert_matches((out, base2[1] / 1.4426950408889634), wanted, batch.layout)

    positions = torch.nn.functional.pad(batch.everything(), (0, 256 - 135), value=-1)
    triton = Wrapper(WORKSPACE.cuda(), backend="triton")
    triton.plan(**batch.plan())
    lists = {"topk_indices": positions, "return_lse_base_on_e": True}
    seen = [one.cpu() for one in triton.run(**inputs, **lists)]
    assert_matches(wrapper.run(**inputs, **lists), (seen[0].float(), seen[1]), batch.layout)
