"""Lists that the wrapper finds itself, by index keys in the engine's pages."""

from typing import Any

import pytest
import torch

from hisparse_sidecar import (
    BatchHiSparseMLAPagedAttentionWrapper,
    MLAPlanMetadata,
    SelectionConfig,
)
from hisparse_sidecar.errors import InvalidArgument
from tests.attention.batches import make_batch
from tests.attention.dense import DenseMLAWrapper
from tests.attention.index_batches import TOPK, IndexBatch, make_index_batch
from tests.kernels.gpu.attention import assert_matches

Wrapper = BatchHiSparseMLAPagedAttentionWrapper
SEQUENCES = ((1, 700), (3, 330), (0, 64), (1, 0), (2, 97), (2, 1), (1, 60))
FLAT = SelectionConfig("flat")
HISA = SelectionConfig("hisa", num_kept_blocks=3, gate="off")
SELECTIONS = {
    "flat": FLAT,
    "hisa": HISA,
    "hisa of few heads": SelectionConfig("hisa", 3, 2, routed_stages="both", gate="off"),
    "ratio": SelectionConfig("hisa", 2, budget="ratio", max_blocks=4, gate="off"),
    "adaptive": SelectionConfig("hisa", 4, budget="adaptive", max_blocks=8, gate="off"),
    "misa": SelectionConfig("misa", routed_heads=2),
    "misa_dagger": SelectionConfig("misa_dagger", routed_heads=1, candidates=128),
}


def index_batch(place: tuple[str, str], **made: Any) -> IndexBatch:
    device, backend = place
    batch = make_batch(SEQUENCES, device=device, num_pages=40, max_pages=12, heads=2)
    return make_index_batch(batch, backend, **made)


@pytest.mark.parametrize("block_tokens", [64, 128])
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_packed_batch_selects_what_each_sequence_selects_alone(
    name: str, block_tokens: int, place: tuple[str, str], wrapper: Wrapper
) -> None:
    made, selection = index_batch(place, block_tokens=block_tokens), SELECTIONS[name]
    wrapper.plan(**made.plan(selection))

    found = wrapper.select(**made.inputs())

    assert found.tolist() == made.expected(selection)


@pytest.mark.interpreted
def test_hisa_in_pages_that_lie_apart(place: tuple[str, str], wrapper: Wrapper) -> None:
    device, backend = place
    batch = make_batch(((1, 330), (2, 97)), device=device, max_pages=6, heads=1)
    made = make_index_batch(batch, backend, block_tokens=128, layout="fp32")
    selection = SelectionConfig("hisa", num_kept_blocks=2, gate="off")
    wrapper.plan(**made.plan(selection, max_seq_len=384))

    assert wrapper.select(**made.inputs()).tolist() == made.expected(selection)


@pytest.mark.parametrize("name", ["flat", "hisa", "misa"])
def test_a_run_attends_to_what_it_selects(
    name: str, place: tuple[str, str], wrapper: Wrapper
) -> None:
    made = index_batch(place)
    batch = made.batch
    wrapper.plan(**made.plan(SELECTIONS[name]))
    inputs = {"query": batch.query, "kv_cache": batch.kv_cache, "return_lse": True}

    found = wrapper.run(**inputs, **made.inputs())

    lists = wrapper.select(**made.inputs())
    wanted = wrapper.run(**inputs, topk_indices=lists)  # as layers that share the selection do
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    assert found[1].isfinite().any()


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_of_everything_is_dense_attention(
    name: str, place: tuple[str, str], wrapper: Wrapper
) -> None:
    made = index_batch(place)
    batch = made.batch
    selection = {"hisa": SelectionConfig("hisa", gate="off")}.get(name, SELECTIONS[name])
    if selection.index_source == "hisa" and name != "hisa":
        selection = SelectionConfig("hisa", num_kept_blocks=16, gate="off")
    if name == "misa_dagger":
        selection = SelectionConfig("misa_dagger", routed_heads=1, candidates=800)
    wrapper.plan(**made.plan(selection, topk=768))
    dense = DenseMLAWrapper(torch.empty(0))
    dense.plan(**batch.plan())
    inputs = {"query": batch.query, "kv_cache": batch.kv_cache, "return_lse": True}

    results = wrapper.run(**inputs, **made.inputs())

    assert_matches(results, dense.run(**inputs), batch.layout)


def test_flat_needs_no_pooled_keys(place: tuple[str, str], wrapper: Wrapper) -> None:
    made = index_batch(place)
    wrapper.plan(**made.plan(FLAT, pooled_table=None))
    inputs = made.inputs() | {"pooled_k_cache": None}
    assert wrapper.select(**inputs).tolist() == made.expected(FLAT)


def test_both_forms_of_metadata_select_the_same(place: tuple[str, str], wrapper: Wrapper) -> None:
    made = index_batch(place)
    wrapper.plan(**made.plan(HISA))
    wanted = wrapper.select(**made.inputs())
    wrapper.plan(**made.plan(HISA, metadata=made.batch.dense()))
    assert torch.equal(wrapper.select(**made.inputs()), wanted)


def test_rows_of_sequences_beyond_the_bound_get_nothing(
    place: tuple[str, str], wrapper: Wrapper
) -> None:
    made = index_batch(place)
    wrapper.plan(**made.plan(FLAT, max_seq_len=640))
    found = wrapper.select(**made.inputs()).tolist()
    assert found[0] == [-1] * TOPK  # the row of 700 tokens
    assert found[1:] == made.expected(FLAT)[1:]


@pytest.mark.interpreted
@pytest.mark.parametrize("block_tokens", [64, 128])
@pytest.mark.parametrize("name", ["flat", "hisa", "misa", "misa_dagger"])
def test_tokens_of_pages_that_are_not_there_are_never_selected(
    name: str, block_tokens: int, place: tuple[str, str], wrapper: Wrapper
) -> None:
    device, backend = place
    batch = make_batch(((1, 330), (2, 97), (1, 300)), device=device, max_pages=6, heads=1)
    made = make_index_batch(batch, backend, block_tokens=block_tokens)
    table = batch.table[:, :4].contiguous()  # the last sequence needs 5
    table[0, 1], table[0, 2] = -1, len(batch.kv_cache)
    table[1, 1] = -7
    lens = torch.tensor([330, 97, 300], device=device).int()
    metadata = MLAPlanMetadata.dense(batch.qo_indptr(), table, lens, 2)
    everything = {  # each keeps every block and candidate, so that only what is there decides
        "flat": FLAT,
        "hisa": SelectionConfig("hisa", num_kept_blocks=6, gate="off"),
        "misa": SelectionConfig("misa", routed_heads=2),
        "misa_dagger": SelectionConfig("misa_dagger", routed_heads=2, candidates=384),
    }
    changed = {"metadata": metadata, "topk": 260, "max_seq_len": 384}
    wrapper.plan(**made.plan(everything[name], **changed))

    found = wrapper.select(**made.inputs())

    there = [*range(64), *range(192, 256)], [*range(64)], [*range(64)], [*range(256)]
    assert [[token for token in row if token >= 0] for row in found.tolist()] == [*there, [], []]


@pytest.mark.interpreted
@pytest.mark.parametrize("name", ["flat", "hisa", "misa"])
def test_no_rows_select_nothing(name: str, place: tuple[str, str], wrapper: Wrapper) -> None:
    made = index_batch(place)
    wrapper.plan(**made.plan(SELECTIONS[name]))
    nothing = {key: made.inputs()[key][:0] for key in ("index_q", "index_weights")}
    inputs = made.inputs() | nothing

    assert wrapper.select(**inputs).tolist() == []
    assert wrapper.select(**inputs).shape == (0, TOPK)
    assert wrapper.select(**inputs).dtype == torch.int32
    query = {"query": made.batch.query[:0], "kv_cache": made.batch.kv_cache}
    assert wrapper.run(**query, **inputs).shape == (0, 2, 512)


@pytest.mark.interpreted
@pytest.mark.parametrize("name", ["flat", "hisa", "misa"])
def test_rows_without_sequences_are_padding(
    name: str, place: tuple[str, str], wrapper: Wrapper
) -> None:
    made = index_batch(place)
    starts, lens = made.batch.qo_indptr()[:1], made.batch.qo_indptr()[:0]
    metadata = MLAPlanMetadata.dense(starts, made.batch.table[:0], lens, 3)
    tables = {"metadata": metadata, "pooled_table": made.pooled_table[:0]}
    wrapper.plan(**made.plan(SELECTIONS[name], **tables))

    assert wrapper.select(**made.inputs()).tolist() == [[-1] * TOPK] * made.batch.rows


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", ["flat", "hisa"])
def test_a_plan_that_fails_on_its_way_leaves_the_last_one(
    name: str, place: tuple[str, str], wrapper: Wrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = index_batch(place)
    wrapper.plan(**made.plan(SELECTIONS[name]))
    wanted = wrapper.select(**made.inputs())
    far = MLAPlanMetadata.dense(
        made.batch.qo_indptr(), made.batch.table, torch.zeros(7, device="meta").int()
    )
    with pytest.raises(InvalidArgument, match="seq_lens is on meta"):
        wrapper.plan(**made.plan(SELECTIONS[name], metadata=far, max_rows=100))
    assert torch.equal(wrapper.select(**made.inputs()), wanted)

    def fail(*_: Any) -> None:
        raise RuntimeError("no copy")

    with monkeypatch.context() as broken:
        broken.setattr("hisparse_sidecar.attention.metadata.BatchArrays.put", fail)
        with pytest.raises(RuntimeError, match="no copy"):
            wrapper.plan(**made.plan(FLAT, max_rows=100, pooled_table=None))
    assert torch.equal(wrapper.select(**made.inputs()), wanted)


@pytest.mark.cpu_only
def test_a_selection_whose_queries_require_grad_is_the_same(
    place: tuple[str, str], wrapper: Wrapper
) -> None:
    made = index_batch(place)
    wrapper.plan(**made.plan(HISA))
    learned = {
        key: made.inputs()[key].clone().requires_grad_() for key in ("index_q", "index_weights")
    }
    assert wrapper.select(**made.inputs() | learned).tolist() == made.expected(HISA)


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"index_q": None}, "index_source is 'hisa', a run needs index_q, index_weights"),
        ({"index_weights": None}, "a run needs index_q, index_weights and index_k_cache"),
        ({"index_k_cache": None}, "a run that selects needs index_k_cache"),
        ({"pooled_k_cache": None}, "a run needs pooled_k_cache, and a plan with pooled_table"),
        ({"index_q": torch.zeros(12, 4, 64)}, r"index_q has shape .*, needs \(any, any, 128\)"),
        ({"index_weights": torch.zeros(12, 3)}, r"index_weights has shape \(12, 3\), needs"),
        (
            {"index_q": torch.zeros(13, 4, 128), "index_weights": torch.zeros(13, 4)},
            "the run has 13 rows, max_rows of the plan is 12",
        ),
        (
            {"index_q": torch.zeros(12, 0, 128), "index_weights": torch.zeros(12, 0)},
            "index_q has 0 heads, needs >= 1",
        ),
        ({"index_k_cache": torch.zeros(9, 64, 131).byte()}, "needs contiguous uint8 pages of"),
        ({"index_k_cache": torch.zeros(0, 8448).byte()}, "needs contiguous uint8 pages of"),
        ({"pooled_k_cache": torch.zeros(9, 32768).byte()}, "has fp32 rows, index_k_cache fp8 rows"),
    ],
)
def test_index_inputs_that_do_not_fit_are_refused(
    changed: dict[str, Any], match: str, place: tuple[str, str], wrapper: Wrapper
) -> None:
    made = index_batch(place)
    wrapper.plan(**made.plan(HISA))

    with pytest.raises(InvalidArgument, match=match):
        wrapper.select(**made.inputs() | changed)

    assert wrapper.select(**made.inputs()).tolist() == made.expected(HISA)


@pytest.mark.cpu_only
def test_a_selection_by_more_heads_than_there_are_is_refused(
    place: tuple[str, str], wrapper: Wrapper
) -> None:
    made = index_batch(place)
    wrapper.plan(**made.plan(SelectionConfig("misa", routed_heads=5)))
    with pytest.raises(InvalidArgument, match="routed_heads is 5, the model has 4"):
        wrapper.select(**made.inputs())


@pytest.mark.cpu_only
def test_rows_need_a_query_of_as_many(place: tuple[str, str], wrapper: Wrapper) -> None:
    made = index_batch(place)
    wrapper.plan(**made.plan(FLAT))
    inputs = {"query": made.batch.query[:4], "kv_cache": made.batch.kv_cache}
    with pytest.raises(InvalidArgument, match=r"topk_indices has shape \(12, 96\), needs \(4, any"):
        wrapper.run(**inputs, **made.inputs())
