"""Suite `plan`: what the host does in one `plan` of the attention wrapper, and in one `run`.

Nothing waits for the device: these are the microseconds that a step's launches are late by.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from hisparse_sidecar import BatchHiSparseMLAPagedAttentionWrapper, MLAPlanMetadata, SelectionConfig
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch, Timing, summarize

_BATCHES, _PAGE, _PAGES_EACH, _HEADS, _TOPK = (1, 64, 256), 64, 32, 16, 512
_HISA = SelectionConfig("hisa", num_kept_blocks=8, gate="off")
_WORKSPACE_BYTES = 128 << 20
_CALLS = 8  # of one sample: few enough not to fill the device's queue


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    yield from measure_on("cuda", stopwatch)


def measure_on(
    device: str, stopwatch: Stopwatch, batches: tuple[int, ...] = _BATCHES
) -> Iterator[Measurement]:
    """Every case on a device."""
    for batch in batches:
        for use_cuda_graph in (False, True):
            where = "copied to reserved arrays" if use_cuda_graph else "where it lies"
            for form, selects in (("csr", False), ("dense", False), ("dense", True)):
                wrapper, plan, run = _wrapper(
                    device, batch, form, selects=selects, use_cuda_graph=use_cuda_graph
                )
                lists = "hisa" if selects else "given lists"
                case = f"{batch} sequences, {form}, {where}, {lists}"
                yield from _times(f"plan, {case}", _host_time(plan, stopwatch))
                if form == "dense" and not use_cuda_graph:
                    yield from _times(f"run, {case}", _host_time(run, stopwatch))
                del wrapper


def _wrapper(
    device: str, batch: int, form: str, *, selects: bool, use_cuda_graph: bool
) -> tuple[BatchHiSparseMLAPagedAttentionWrapper, Callable[[], None], Callable[[], object]]:
    """A wrapper, and calls of its plan and its run."""
    metadata = _metadata(device, batch)
    reserved = {name: torch.empty_like(array) for name, array in metadata.items()}
    workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    arrays: dict[str, Any] = dict(reserved) if use_cuda_graph else {}
    wrapper = BatchHiSparseMLAPagedAttentionWrapper(workspace, use_cuda_graph, **arrays)
    starts, lens = metadata["qo_indptr"], metadata["kv_len_arr"]
    dense = MLAPlanMetadata.dense(starts, metadata["block_tables"], lens, 1)
    csr = MLAPlanMetadata.csr(starts, metadata["kv_indptr"], metadata["kv_indices"], lens)
    selection = _selection(metadata["pooled_table"]) if selects else {}

    def plan() -> None:
        wrapper.plan(
            metadata=csr if form == "csr" else dense,
            num_heads=_HEADS,
            sm_scale=576**-0.5,
            q_data_type=torch.bfloat16,
            kv_data_type=torch.bfloat16,
            page_size=_PAGE,
            **selection,
        )

    plan()
    inputs = _inputs(device, batch, selects=selects)
    return wrapper, plan, lambda: wrapper.run(**inputs)


def _metadata(device: str, batch: int) -> dict[str, torch.Tensor]:
    def numbers(count: int, step: int = 1) -> torch.Tensor:
        return torch.arange(count, dtype=torch.int32, device=device) * step

    pages = numbers(batch * _PAGES_EACH)
    return {
        "qo_indptr": numbers(batch + 1),
        "kv_indptr": numbers(batch + 1, _PAGES_EACH),
        "kv_indices": pages,
        "kv_len_arr": numbers(batch) % 64 + (_PAGES_EACH - 1) * _PAGE,
        "block_tables": pages.view(batch, _PAGES_EACH),
        "pooled_table": numbers(batch)[:, None],
    }


def _selection(pooled_table: torch.Tensor) -> dict[str, Any]:
    bounds = {"topk": _TOPK, "max_seq_len": _PAGES_EACH * _PAGE}
    return bounds | {"index_source": _HISA, "pooled_table": pooled_table}


def _inputs(device: str, batch: int, *, selects: bool) -> dict[str, Any]:
    pages = batch * _PAGES_EACH
    query = torch.zeros(batch, _HEADS, 576, dtype=torch.bfloat16, device=device)
    cache = torch.zeros(pages, _PAGE, 576, dtype=torch.bfloat16, device=device)
    inputs = {"query": query, "kv_cache": cache, "out": query.new_empty(batch, _HEADS, 512)}
    if not selects:
        lists = torch.arange(_TOPK, dtype=torch.int32, device=device).expand(batch, -1)
        return inputs | {"topk_indices": lists.contiguous()}
    return inputs | {
        "index_q": torch.zeros(batch, 64, 128, device=device).to(torch.float8_e4m3fn),
        "index_weights": torch.zeros(batch, 64, device=device),
        "index_k_cache": torch.zeros(pages, _PAGE * 132, dtype=torch.uint8, device=device),
        "pooled_k_cache": torch.zeros(batch, _PAGE * 132, dtype=torch.uint8, device=device),
    }


def _host_time(call: Callable[[], object], stopwatch: Stopwatch) -> Timing:
    """Seconds of one call until it returns, whatever the device still does."""
    for _ in range(stopwatch.num_warm_ups):
        call()
    seconds = []
    for _ in range(stopwatch.num_runs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(_CALLS):
            call()
        seconds.append((time.perf_counter() - start) / _CALLS)
    return summarize(seconds)


def _times(case: str, timing: Timing) -> Iterator[Measurement]:
    yield Measurement(case, "median us of the host", timing.median_seconds * 1e6, "lower")
    yield Measurement(case, "p99 us of the host", timing.p99_seconds * 1e6, "lower")


SUITE = Suite(
    name="plan",
    summary="host time of the attention wrapper's plan and run on a GPU, by batch (us)",
    device="cuda",
    measure=_measure,
)
