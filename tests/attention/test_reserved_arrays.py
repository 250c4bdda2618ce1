"""Under CUDA graphs plans write to reserved arrays, whose memory never moves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from accuracy import assert_bits_equal
from hisparse_sidecar import BatchHiSparseMLAPagedAttentionWrapper, MLAPlanMetadata, SelectionConfig
from hisparse_sidecar.errors import InvalidArgument
from tests.attention.batches import Batch, make_batch
from tests.attention.index_batches import IndexBatch, make_index_batch
from tests.kernels.gpu.graphs import assert_allocates_nothing
from tests.no_waiting import no_waiting

Wrapper = BatchHiSparseMLAPagedAttentionWrapper
# the same batch size and rows, other lengths; a request that ended leaves a row without tokens
STEPS = (
    ((1, 70), (2, 65), (1, 1)),
    ((1, 71), (2, 190), (1, 0)),
    ((2, 200), (1, 65), (0, 64)),
)
ROWS = 5
CSR = ("qo_indptr", "kv_indptr", "kv_indices", "kv_len_arr")
SELECTIONS = {
    "flat": SelectionConfig("flat"),
    "hisa": SelectionConfig("hisa", num_kept_blocks=2, gate="off"),
    "misa": SelectionConfig("misa", routed_heads=2),
}


def reserved(device: str) -> dict[str, torch.Tensor]:
    sizes = {"qo_indptr": (4,), "kv_indptr": (4,), "kv_indices": (16,), "kv_len_arr": (3,)}
    sizes |= {"block_tables": (3, 4), "pooled_table": (3, 2)}
    return {
        name: torch.zeros(size, dtype=torch.int32, device=device) for name, size in sizes.items()
    }


def made_wrapper(
    place: tuple[str, str], arrays: dict[str, torch.Tensor], *, use_cuda_graph: bool = True
) -> Wrapper:
    device, backend = place
    workspace = torch.empty(1 << 22, dtype=torch.uint8, device=device)
    return Wrapper(workspace, use_cuda_graph, backend=backend, **arrays)


def step(number: int, device: str, **made: Any) -> Batch:
    padding = ROWS - sum(rows for rows, _ in STEPS[number])
    sizes = {"padding": padding, "heads": 2, "seed": number} | made
    return make_batch(STEPS[number], device=device, **sizes)


def attended(wrapper: Wrapper, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = {"query": batch.query, "kv_cache": batch.kv_cache}
    return wrapper.run(**inputs, topk_indices=batch.everything(), return_lse=True)


@pytest.mark.parametrize("form", ["csr", "dense"])
def test_plans_of_other_lengths_use_the_same_memory(
    form: str, place: tuple[str, str], device: str
) -> None:
    arrays = reserved(device)
    before = {name: array.data_ptr() for name, array in arrays.items()}
    wrapper = made_wrapper(place, arrays)
    plain = made_wrapper(place, {}, use_cuda_graph=False)
    for number in range(len(STEPS)):
        batch = step(number, device)
        metadata = getattr(batch, form)()
        wrapper.plan(**batch.plan(metadata=metadata))
        plain.plan(**batch.plan(metadata=metadata))

        found, wanted = attended(wrapper, batch), attended(plain, batch)

        assert_bits_equal(found[0], wanted[0])
        assert_bits_equal(found[1], wanted[1])
        assert arrays["qo_indptr"].tolist() == batch.qo_indptr().tolist()
    assert {name: array.data_ptr() for name, array in arrays.items()} == before


def test_the_arrays_themselves_may_be_the_metadata(place: tuple[str, str], device: str) -> None:
    arrays, batch = reserved(device), step(1, device)
    wrapper = made_wrapper(place, arrays)
    for name in CSR:
        source = getattr(batch.csr(), name)
        arrays[name][: len(source)] = source
    wrapper.plan(**batch.plan(metadata=MLAPlanMetadata.csr(*(arrays[name] for name in CSR))))

    found = attended(wrapper, batch)

    plain = made_wrapper(place, {}, use_cuda_graph=False)
    plain.plan(**batch.plan())
    assert_bits_equal(found[0], attended(plain, batch)[0])


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("left_out", "form", "match"),
    [
        ("kv_indptr", "csr", "use_cuda_graph needs a reserved kv_indptr, __init__ got block_tab"),
        ("kv_len_arr", "csr", "use_cuda_graph needs a reserved kv_len_arr"),
        ("qo_indptr", "dense", "use_cuda_graph needs a reserved qo_indptr"),
        ("block_tables", "dense", "use_cuda_graph needs a reserved block_tables"),
    ],
)
def test_a_missing_array_is_named(
    left_out: str, form: str, match: str, place: tuple[str, str]
) -> None:
    arrays = reserved("cpu")
    del arrays[left_out]
    batch = step(0, "cpu")
    with pytest.raises(InvalidArgument, match=match):
        made_wrapper(place, arrays).plan(**batch.plan(metadata=getattr(batch, form)()))


@pytest.mark.cpu_only
def test_metadata_that_the_arrays_have_no_room_for_are_refused_and_nothing_is_copied(
    place: tuple[str, str],
) -> None:
    arrays = reserved("cpu") | {"kv_indices": torch.zeros(6, dtype=torch.int32)}
    wrapper, batch = made_wrapper(place, arrays), step(0, "cpu")
    wrapper.plan(**batch.plan())
    before = {name: array.clone() for name, array in arrays.items()}
    more_pages, more_rows = step(1, "cpu"), make_batch(((1, 5),) * 4)
    wider = make_batch(STEPS[0], max_pages=5)

    message = r"kv_indices has shape \(7,\), the reserved array has \(6,\)"
    pages = torch.cat([more_pages.csr().kv_indices, torch.zeros(2).int()])
    csr = more_pages.csr()
    too_many = MLAPlanMetadata.csr(csr.qo_indptr, csr.kv_indptr, pages, csr.kv_len_arr)
    with pytest.raises(InvalidArgument, match=message):
        wrapper.plan(**batch.plan(metadata=too_many))
    with pytest.raises(InvalidArgument, match=r"has shape \(5,\), the reserved array has \(4,\)"):
        wrapper.plan(**more_rows.plan())
    with pytest.raises(InvalidArgument, match=r"has shape \(3, 5\), the reserved array has \(3, 4"):
        wrapper.plan(**wider.plan(metadata=wider.dense()))

    for name, array in arrays.items():
        assert torch.equal(array, before[name])


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"qo_indptr": torch.zeros(4)}, "reserved qo_indptr is torch.float32, needs torch.int32"),
        ({"block_tables": torch.zeros(4).int()}, "reserved block_tables has 1 dimensions, needs 2"),
        ({"kv_len_arr": torch.zeros(6).int()[::2]}, "reserved kv_len_arr has strides"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_at_once(
    changed: dict[str, torch.Tensor], match: str, place: tuple[str, str]
) -> None:
    with pytest.raises(InvalidArgument, match=match):
        made_wrapper(place, reserved("cpu") | changed)


@pytest.mark.cpu_only
def test_more_rows_than_the_first_plan_reserved_are_refused(place: tuple[str, str]) -> None:
    batch = step(0, "cpu")
    wrapper = made_wrapper(place, reserved("cpu"))
    made = make_index_batch(batch, place[1])
    flat = made.plan(SELECTIONS["flat"], max_seq_len=256, max_rows=5)
    wrapper.plan(**flat)
    for bigger in ({"max_rows": 6}, {"max_seq_len": 257}):
        message = r"the plan has . rows and a page .*, the first one reserved 5 and \(3, 4\)"
        with pytest.raises(InvalidArgument, match=message):
            wrapper.plan(**flat | bigger)
    wrapper.plan(**flat | {"max_rows": 4})
    with pytest.raises(InvalidArgument, match="the run has 5 rows, max_rows of the plan is 4"):
        wrapper.select(**made.inputs())


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections_of_other_lengths_use_the_same_memory(
    name: str, place: tuple[str, str], device: str
) -> None:
    wrapper = made_wrapper(place, reserved(device))
    plain = made_wrapper(place, {}, use_cuda_graph=False)
    for number in range(len(STEPS)):
        made = make_index_batch(step(number, device), place[1])
        plan = made.plan(SELECTIONS[name], max_seq_len=256, topk=48)
        wrapper.plan(**plan)
        plain.plan(**plan)
        assert wrapper.select(**made.inputs()).tolist() == plain.select(**made.inputs()).tolist()


# -- on a GPU ---------------------------------------------------------------------------------


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        call()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def copy_into(held: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> None:
    for name, tensor in held.items():
        tensor.copy_(new[name])


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["csr", "dense"])
@pytest.mark.parametrize("layout", ["fp8_ds_mla", "bf16"])
def test_a_captured_run_replays_what_the_last_plan_says(
    form: str, layout: str, place: tuple[str, str], device: str
) -> None:
    kinds = {"layout": layout, "dtype": torch.bfloat16}
    first = step(0, device, **kinds)
    wrapper, plain = (
        made_wrapper(place, reserved(device)),
        made_wrapper(place, {}, use_cuda_graph=False),
    )
    wrapper.plan(**first.plan(metadata=getattr(first, form)()))
    lists = torch.arange(256, device=device).int().expand(first.rows, -1).contiguous()
    held = {"query": first.query.clone(), "kv_cache": first.kv_cache.clone()}
    results = {
        "out": torch.empty_like(held["query"][..., :512]).contiguous(),
        "lse": torch.empty(held["query"].shape[:2], device=device),
    }
    graph = captured(lambda: wrapper.run(**held, topk_indices=lists, **results))
    for number in (1, 2, 0):
        batch = step(number, device, **kinds)
        new = {"query": batch.query, "kv_cache": batch.kv_cache}
        copy_into(held, new)
        wrapper.plan(**batch.plan(metadata=getattr(batch, form)()))
        graph.replay()
        plain.plan(**batch.plan())
        wanted = plain.run(**new, topk_indices=lists, return_lse=True)
        assert_bits_equal(results["out"], wanted[0])
        assert_bits_equal(results["lse"], wanted[1])


@pytest.mark.gpu
@pytest.mark.parametrize("block_tokens", [64, 128])
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_captured_run_that_selects_replays_what_the_last_plan_says(
    name: str, block_tokens: int, place: tuple[str, str], device: str
) -> None:
    def made(number: int) -> IndexBatch:
        return make_index_batch(step(number, device), place[1], block_tokens, seed=number)

    first, selection = made(0), SELECTIONS[name]
    wrapper, plain = (
        made_wrapper(place, reserved(device)),
        made_wrapper(place, {}, use_cuda_graph=False),
    )
    bounds = {"max_seq_len": 256, "topk": 48}
    wrapper.plan(**first.plan(selection, **bounds))
    inputs = {"query": first.batch.query, "kv_cache": first.batch.kv_cache} | first.inputs()
    held = {name: tensor.clone() for name, tensor in inputs.items()}
    out = torch.empty_like(held["query"][..., :512]).contiguous()
    graph = captured(lambda: wrapper.run(**held, out=out))
    for number in (1, 2, 0):
        other = made(number)
        new = {"query": other.batch.query, "kv_cache": other.batch.kv_cache} | other.inputs()
        copy_into(held, new)
        wrapper.plan(**other.plan(selection, **bounds))
        graph.replay()
        plain.plan(**other.plan(selection, **bounds))
        assert_bits_equal(out, plain.run(**new))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.gpu
@pytest.mark.parametrize("use_cuda_graph", [True, False])
@pytest.mark.parametrize("name", ["given", *SELECTIONS])
def test_neither_plan_nor_run_waits_for_the_device(
    name: str, use_cuda_graph: bool, place: tuple[str, str], device: str
) -> None:
    made = make_index_batch(step(0, device), place[1])
    batch = made.batch
    wrapper = made_wrapper(place, reserved(device), use_cuda_graph=use_cuda_graph)
    inputs = {"query": batch.query, "kv_cache": batch.kv_cache, "return_lse": True}
    plan = batch.plan()
    if name == "given":
        inputs["topk_indices"] = batch.everything()
    else:
        plan = made.plan(SELECTIONS[name], max_seq_len=256, topk=48)
        inputs |= made.inputs()

    def step_of_two_layers() -> None:
        wrapper.plan(**plan)
        wrapper.run(**inputs)
        wrapper.run(**inputs)

    step_of_two_layers()  # compiles
    torch.cuda.synchronize()
    with no_waiting():
        step_of_two_layers()


@pytest.mark.gpu
@pytest.mark.parametrize("use_cuda_graph", [True, False])
@pytest.mark.parametrize("name", ["given", *SELECTIONS])
def test_a_plan_allocates_nothing_once_it_has_its_memory(
    name: str, use_cuda_graph: bool, place: tuple[str, str], device: str
) -> None:
    made = make_index_batch(step(0, device), place[1])
    wrapper = made_wrapper(place, reserved(device), use_cuda_graph=use_cuda_graph)
    plan = made.batch.plan()
    if name != "given":
        plan = made.plan(SELECTIONS[name], max_seq_len=256, topk=48)

    assert_allocates_nothing(lambda: wrapper.plan(**plan))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.gpu
def test_metadata_on_the_host_are_copied_without_a_wait(
    place: tuple[str, str], device: str
) -> None:
    batch, arrays = step(1, device), reserved(device)
    wrapper, plain = made_wrapper(place, arrays), made_wrapper(place, {}, use_cuda_graph=False)
    host = MLAPlanMetadata.csr(*(getattr(batch.csr(), name).cpu().pin_memory() for name in CSR))
    plan = batch.plan(metadata=host)
    torch.cuda.synchronize()
    with no_waiting():
        wrapper.plan(**plan)
        plain.plan(**plan)
    assert_bits_equal(attended(wrapper, batch)[0], attended(plain, batch)[0])
