"""With every token listed the wrapper is a dense MLA wrapper: it can be swapped in."""

from typing import Any

import pytest
import torch

from hisparse_sidecar import BatchHiSparseMLAPagedAttentionWrapper
from tests.attention.batches import Batch, make_batch
from tests.attention.dense import DenseMLAWrapper
from tests.kernels.gpu.attention import assert_matches

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
Wrapper = BatchHiSparseMLAPagedAttentionWrapper


def dense(batch: Batch, *, base_on_e: bool = False, **changed: Any) -> tuple[torch.Tensor, ...]:
    wrapper = DenseMLAWrapper(torch.empty(0))
    wrapper.plan(**batch.plan(**changed))
    inputs = {"query": batch.query, "kv_cache": batch.kv_cache}
    return wrapper.run(**inputs, return_lse=True, return_lse_base_on_e=base_on_e)


@pytest.mark.parametrize(
    ("layout", "dtype", "heads", "page_size"),
    [
        ("fp32", F32, 3, 64),
        ("fp32", F32, 1, 1),
        ("bf16", BF16, 17, 16),
        ("bf16", F32, 4, 64),
        ("fp8_ds_mla", BF16, 8, 64),
        ("fp8_ds_mla", F16, 3, 32),
        ("fp8", BF16, 16, 64),
    ],
)
def test_all_positions_give_what_a_dense_wrapper_gives(
    layout: str, dtype: torch.dtype, heads: int, page_size: int, wrapper: Wrapper, device: str
) -> None:
    pages = 400 if page_size < 64 else 24
    sizes = {"page_size": page_size, "num_pages": pages, "max_pages": 140}
    batch = make_batch(device=device, layout=layout, dtype=dtype, heads=heads, **sizes)
    wrapper.plan(**batch.plan())

    results = wrapper.run(
        query=batch.query,
        kv_cache=batch.kv_cache,
        topk_indices=batch.everything(),
        return_lse=True,
        return_lse_base_on_e=True,
    )

    assert results[0].dtype == dtype
    assert_matches(results, dense(batch, base_on_e=True), batch.layout)


@pytest.mark.interpreted
def test_the_lse_is_to_base_2_as_flashinfer_has_it(wrapper: Wrapper, device: str) -> None:
    batch = make_batch(((1, 70), (0, 3), (2, 1), (1, 0)), device=device, dtype=BF16, layout="bf16")
    inputs = {"query": batch.query, "kv_cache": batch.kv_cache}
    wrapper.plan(**batch.plan())

    results = wrapper.run(**inputs, topk_indices=batch.everything(), return_lse=True)

    wanted = dense(batch)
    assert_matches(results, wanted, batch.layout)
    is_empty = torch.isneginf(wanted[1])
    assert is_empty.any()
    assert torch.equal(torch.isneginf(results[1].cpu()), is_empty)
    assert (results[0].cpu()[is_empty] == 0).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", ["csr", "dense"])
def test_both_forms_of_metadata_and_both_masks(
    causal: bool, form: str, wrapper: Wrapper, device: str
) -> None:
    batch = make_batch(device=device)
    wrapper.plan(**batch.plan(metadata=getattr(batch, form)(), causal=causal))
    inputs = {"query": batch.query, "kv_cache": batch.kv_cache}

    results = wrapper.run(**inputs, topk_indices=batch.everything(), return_lse=True)

    assert_matches(results, dense(batch, causal=causal), batch.layout)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_split_queries_and_caches_give_the_same_bits(
    dtype: torch.dtype, wrapper: Wrapper, device: str
) -> None:
    batch = make_batch(device=device, layout="bf16", dtype=dtype)
    wrapper.plan(**batch.plan(), query_layout="split", kv_cache_layout="split")
    lists = {"topk_indices": batch.everything()}
    wanted = wrapper.run(query=batch.query, kv_cache=batch.kv_cache, **lists)
    ckv, kpe = batch.kv_cache[..., :512], batch.kv_cache[..., 512:]
    nope, rope = batch.query[..., :512], batch.query[..., 512:]

    for query in ((nope, rope), (nope.contiguous(), rope.contiguous())):
        found = wrapper.run(query=query, kv_cache=(ckv, kpe), **lists)
        assert torch.equal(found, wanted)
    legacy = {"q_nope": nope, "q_pe": rope, "ckv_cache": ckv, "kpe_cache": kpe}
    assert torch.equal(wrapper.run(**legacy, **lists), wanted)


def test_pages_of_layers_that_lie_between_each_other(wrapper: Wrapper, device: str) -> None:
    batch = make_batch(device=device)
    pages, page_size, width = batch.kv_cache.shape
    slab = torch.full((pages, 3, page_size, width), torch.nan, device=device)
    slab[:, 1] = batch.kv_cache
    wrapper.plan(**batch.plan())
    lists = {"topk_indices": batch.everything()}

    found = wrapper.run(query=batch.query, kv_cache=slab[:, 1], **lists)

    assert torch.equal(found, wrapper.run(query=batch.query, kv_cache=batch.kv_cache, **lists))


def test_flashinfers_own_metadata_object_is_taken(wrapper: Wrapper, device: str) -> None:
    flashinfer = pytest.importorskip("flashinfer.mla", reason="FlashInfer is optional")
    if not hasattr(flashinfer, "MLAPlanMetadata"):
        pytest.skip("this FlashInfer has no metadata object")
    batch = make_batch(device=device)
    ours = batch.csr()
    theirs = flashinfer.MLAPlanMetadata.csr(
        ours.qo_indptr, ours.kv_indptr, ours.kv_indices, ours.kv_len_arr
    )
    wrapper.plan(**batch.plan(metadata=theirs))
    inputs = {"query": batch.query, "kv_cache": batch.kv_cache}

    results = wrapper.run(**inputs, topk_indices=batch.everything(), return_lse=True)

    assert_matches(results, dense(batch), batch.layout)


@pytest.mark.parametrize("split_keys", [0, 64, 128])
def test_splits_change_nothing_but_last_bits(
    split_keys: int, wrapper: Wrapper, device: str
) -> None:
    batch = make_batch(device=device)
    wrapper.plan(**batch.plan(), split_keys=split_keys)
    inputs = {"query": batch.query, "kv_cache": batch.kv_cache}

    results = wrapper.run(**inputs, topk_indices=batch.everything(), return_lse=True)

    assert_matches(results, dense(batch), batch.layout)
