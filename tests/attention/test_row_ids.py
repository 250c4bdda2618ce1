"""Called as vLLM's sparse MLA backends call: query, cache, physical row ids, valid counts."""

import pytest
import torch

from hisparse_kernels.sparse_mla import AttentionOptions, sparse_mla_ref
from hisparse_sidecar import BatchHiSparseMLAPagedAttentionWrapper
from tests.attention.batches import SCALE, Batch, make_batch
from tests.kernels.gpu.attention import BF16, F32, Results, assert_matches

Wrapper = BatchHiSparseMLAPagedAttentionWrapper
SHORT = ((1, 70), (3, 130), (2, 1))


def forward_mqa(
    wrapper: Wrapper,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    row_ids: torch.Tensor,
    valid_counts: torch.Tensor,
) -> Results:
    """What a backend's `_forward_mqa_kernel` would be."""
    wrapper.plan(
        num_heads=query.shape[1],
        sm_scale=SCALE,
        q_data_type=query.dtype,
        kv_data_type=kv_cache.dtype,
        head_dim_kpe=query.shape[2] - 512,
        page_size=kv_cache.shape[1],
    )
    return wrapper.run(
        query=query,
        kv_cache=kv_cache,
        row_ids=row_ids,
        valid_counts=valid_counts,
        return_lse=True,
        return_lse_base_on_e=True,
    )


def listed_rows(batch: Batch, topk: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that hold tokens, each once in a list; -1 among them and behind the valid counts."""
    made = torch.Generator().manual_seed(seed)
    held = (~batch.values().isnan().any(1)).nonzero()[:, 0].cpu()
    order = torch.rand(batch.rows, len(held), generator=made).argsort(1)[:, :topk]
    ids = held[order].int()
    ids[torch.rand(ids.shape, generator=made) < 0.3] = -1
    counts = torch.randint(0, topk + 1, (batch.rows,), generator=made).int()
    counts[0], counts[-1] = topk, 0
    return ids.to(batch.device), counts.to(batch.device)


def expected(batch: Batch, ids: torch.Tensor, counts: torch.Tensor) -> Results:
    rows = batch.kv_cache.flatten(0, 1).cpu().contiguous().view(torch.uint8)
    lists = ids.cpu(), batch.layout, SCALE
    return sparse_mla_ref(
        batch.query.cpu().float(), rows, *lists, AttentionOptions(valid_counts=counts.cpu())
    )


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("layout", "dtype", "heads"),
    [("fp8_ds_mla", BF16, 4), ("bf16", BF16, 17), ("fp8", BF16, 3), ("fp32", F32, 2)],
)
def test_row_ids_and_valid_counts_choose_the_rows(
    layout: str, dtype: torch.dtype, heads: int, wrapper: Wrapper, device: str
) -> None:
    batch = make_batch(SHORT, device=device, layout=layout, dtype=dtype, heads=heads)
    ids, counts = listed_rows(batch, 66)

    results = forward_mqa(wrapper, batch.query, batch.kv_cache, ids, counts)

    assert_matches(results, expected(batch, ids, counts), batch.layout)
    assert (results[0][-1] == 0).all()
    assert torch.isneginf(results[1][-1]).all()


def test_what_stands_behind_the_valid_count_is_not_read(wrapper: Wrapper, device: str) -> None:
    batch = make_batch(SHORT, device=device)
    ids, counts = listed_rows(batch, 40)
    wanted = forward_mqa(wrapper, batch.query, batch.kv_cache, ids, counts)
    behind = torch.arange(40, device=device) >= counts[:, None]
    poison = int(batch.values().isnan().any(1).nonzero()[0])

    found = forward_mqa(
        wrapper, batch.query, batch.kv_cache, ids.masked_fill(behind, poison), counts
    )

    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


@pytest.mark.interpreted
def test_positions_and_their_rows_are_the_same_lists(wrapper: Wrapper, device: str) -> None:
    batch = make_batch(SHORT, device=device, heads=1)
    wrapper.plan(**batch.plan())
    positions = batch.everything()[:, :70].flip(1).contiguous()
    positions[:, ::3] = -1
    counts = torch.full((batch.rows,), 66, dtype=torch.int32, device=device)
    inputs = {"query": batch.query, "kv_cache": batch.kv_cache}
    found = wrapper.run(**inputs, topk_indices=positions, valid_counts=counts)
    seq = torch.tensor([0, 1, 1, 1, 2, 2], device=device)  # of 6 rows; 2 are padding
    seen = torch.tensor([70, 128, 129, 130, 0, 1], device=device)
    ids = batch.table[seq].gather(1, (positions[:6].clamp(min=0) // 64).long()) * 64
    ids += positions[:6].clamp(min=0) % 64
    ids.masked_fill_((positions[:6] < 0) | (positions[:6] >= seen[:, None]), -1)

    ids = torch.cat([ids, torch.full_like(ids[:2], -1)])
    wanted = wrapper.run(**inputs, row_ids=ids.int(), valid_counts=counts)

    assert torch.equal(found, wanted)


def test_a_list_may_be_of_any_width_in_each_run(wrapper: Wrapper, device: str) -> None:
    batch = make_batch(SHORT, device=device)
    for topk in (1, 63, 100):
        ids, counts = listed_rows(batch, topk)
        results = forward_mqa(wrapper, batch.query, batch.kv_cache, ids, counts)
        assert_matches(results, expected(batch, ids, counts), batch.layout)


@pytest.mark.parametrize("with_sinks", [True, False])
def test_sinks_are_in_the_denominator_alone(
    with_sinks: bool, wrapper: Wrapper, device: str
) -> None:
    batch = make_batch(SHORT, device=device)
    ids, _ = listed_rows(batch, 50)
    sinks = torch.tensor([0.5, -1.0, 3.0], device=device)
    wrapper.plan(**batch.plan(), use_sinks=with_sinks, lse_mode="basee")
    inputs = {"query": batch.query, "kv_cache": batch.kv_cache, "row_ids": ids}
    modes = {"return_lse": True, "return_lse_base_on_e": True}

    out, lse = wrapper.run(**inputs, **modes, sinks=sinks if with_sinks else None)

    rows = batch.kv_cache.flatten(0, 1).cpu().view(torch.uint8)
    sink = sinks.cpu() if with_sinks else None
    wanted = sparse_mla_ref(
        batch.query.cpu(), rows, ids.cpu(), batch.layout, SCALE, AttentionOptions(sink)
    )
    assert_matches((out, lse), wanted, batch.layout)


def test_results_are_written_where_the_caller_says(wrapper: Wrapper, device: str) -> None:
    batch = make_batch(SHORT, device=device)
    ids, _ = listed_rows(batch, 50)
    wrapper.plan(**batch.plan())
    inputs = {"query": batch.query, "kv_cache": batch.kv_cache, "row_ids": ids}
    wanted = wrapper.run(**inputs, return_lse=True)
    out = torch.full_like(wanted[0], torch.nan)
    lse = torch.full_like(wanted[1], torch.nan)

    assert wrapper.run(**inputs, out=out, lse=lse) is out

    assert torch.equal(out, wanted[0])
    assert torch.equal(lse, wanted[1])
    assert wrapper.run(**inputs, out=out, lse=lse, return_lse=True)[1] is lse


def test_no_rows_and_no_pages_are_legal(wrapper: Wrapper, device: str) -> None:
    batch = make_batch(SHORT, device=device)
    wrapper.plan(**batch.plan())
    none = torch.empty(0, 4, dtype=torch.int32, device=device)
    assert wrapper.run(query=batch.query[:0], kv_cache=batch.kv_cache, row_ids=none).shape == (
        0,
        3,
        512,
    )
    nothing = torch.full((batch.rows, 4), -1, dtype=torch.int32, device=device)
    found = wrapper.run(query=batch.query, kv_cache=batch.kv_cache[:0], row_ids=nothing)
    assert (found == 0).all()
