"""Suite `engine`: SGLang serves with `--attention-backend hisparse` and with its own `dsa`.

Needles: the trained small model answers questions about facts in 4096 to 16000 tokens of text, all
at once; the share of right answers, and of answers equal to those of transformers and of flat
selection, which is served twice, and again with one request at a time. SGLang's own `dsa` asserts a
top-k of 2048, and the model has 512. Several engines share the GPU then.
Loads: 8 layers of DeepSeek-V3.2 and GLM-5 with random weights; requests that share all but the last
64 tokens of their context decode at once. Each setup runs in an engine of its own, with CUDA
graphs; one of several ranks only where there are as many GPUs. A start takes
about a minute: `--cases` chooses.
"""

import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from benchmarks.engine import setups
from benchmarks.engine.models import SHAPES, TINY_DSA, write_shape
from benchmarks.engine.needles import questions, share_right
from benchmarks.engine.runs import Load, Served, Work, serve, sglang_version
from benchmarks.engine.setups import Setup
from benchmarks.lines import Panel, Point, draw_lines
from hisparse_sidecar.cli.bench.rows import Measurement, Row
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch

_REFERENCE = "transformers in fp32"
_LENGTHS, _TEXTS, _NEW_TOKENS = (4096, 8192, 16000), 4, 16
_ENGINES_AT_ONCE = 5  # of the trained model, on one GPU
_NEEDLE_SETUPS = (
    setups.FLAT,
    setups.FLAT_AGAIN,
    setups.FLAT_ALONE,
    setups.HISA,
    setups.OFFLOAD,
    setups.OFFLOAD_ALONE,
    setups.HISA_OFFLOAD,
    setups.INDEX_OFFLOAD,
    setups.CACHED_OFFLOAD,
    setups.CACHED_INDEX_OFFLOAD,
    setups.RANKS_OFFLOAD,
    setups.BF16_OFFLOAD,
    setups.RETRACTED_OFFLOAD,
)
_LOAD_SETUPS = (
    setups.DSA,
    setups.SGLANG_OFFLOAD,
    setups.GATED,
    setups.FLAT,
    setups.HISA,
    setups.OFFLOAD,
    setups.HISA_OFFLOAD,
    setups.INDEX_OFFLOAD,
    setups.CACHED_OFFLOAD,
)
_LOADS: tuple[Load, ...] = tuple(
    (context, requests, 256) for context in (32 << 10, 128 << 10) for requests in (1, 8, 64)
)
_GRAPH_BATCHES = [1, 2, 4, 8, 16, 32, 64]
_LOAD_ARGUMENTS: dict[str, Any] = {
    "load_format": "dummy",
    "context_length": 140000,
    "max_running_requests": 64,
    "max_total_tokens": 1 << 20,
    "cuda_graph_bs_decode": _GRAPH_BATCHES,
}
_NEEDLE_ARGUMENTS: dict[str, Any] = {
    "context_length": 16384,
    "max_running_requests": 64,
    "max_total_tokens": 1 << 18,
    "cuda_graph_bs_decode": _GRAPH_BATCHES,
}
_MEDIAN = "ITL, median ms"
_LOAD_CASE = re.compile(
    rf"(?P<shape>{'|'.join(SHAPES)}), (?P<setup>.+), "
    r"(?P<context>\d+K) tokens, (?P<requests>\d+) at once"
)


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    if not sglang_version():
        yield Measurement("SGLang", "absent: the package sglang is not installed", 0.0, "higher")
        return
    yield from _needles(stopwatch)
    for shape in SHAPES:
        yield from _loads(stopwatch, shape)


def _needles(stopwatch: Stopwatch) -> Iterator[Measurement]:
    asked = [one for length in _LENGTHS for one in questions(length, _TEXTS)]
    work = Work([one.token_ids for one in asked], _NEW_TOKENS)
    cases = {
        f"{len(asked)} needles, {setup.name if setup else _REFERENCE}": setup
        for setup in (None, *_NEEDLE_SETUPS)
        if _has_gpus_for(setup)
    }
    wanted = {case: setup for case, setup in cases.items() if stopwatch.wants(case)}
    known: dict[str, list[list[int]]] = {}
    with ThreadPoolExecutor(_ENGINES_AT_ONCE) as pool:  # nothing is timed
        all_served = pool.map(partial(_served, work=work), wanted, wanted.values())
        for (case, setup), served in zip(wanted.items(), all_served, strict=True):
            if not served.answers:
                yield _failed(case, served)
                continue
            yield Measurement(case, "right %", 100 * share_right(asked, served.answers), "higher")
            for other, answers in known.items():
                equal = sum(a == b for a, b in zip(served.answers, answers, strict=True))
                metric = f"{_NEW_TOKENS} tokens equal to those of {other}, %"
                yield Measurement(case, metric, 100 * equal / len(asked), "higher")
            if setup in (None, setups.FLAT, setups.FLAT_ALONE):
                known[setup.name if setup else _REFERENCE] = served.answers


def _served(case: str, setup: Setup | None, work: Work) -> Served:
    used = setups.for_trained(setup or setups.FLAT)
    arguments = used.arguments(TINY_DSA, **_NEEDLE_ARGUMENTS)
    return serve(case, arguments, work, "child" if setup else "reference", used.environment)


def _has_gpus_for(setup: Setup | None) -> bool:
    return setup is None or torch.cuda.device_count() >= setup.num_ranks


def _loads(stopwatch: Stopwatch, shape: str) -> Iterator[Measurement]:
    stock: dict[tuple[Load, str], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = write_shape(shape, Path(folder))
        for setup in _LOAD_SETUPS:
            name = f"{shape}, {setup.name}"
            loads = [load for load in _LOADS if stopwatch.wants(_load_case(name, load))]
            if not loads:
                continue
            served = serve(name, setup.arguments(model, **_LOAD_ARGUMENTS), Work(loads=loads))
            if served.failure:
                yield _failed(name, served)
            for load, found in zip(loads, served.loads, strict=False):
                for row in _load_rows(_load_case(name, load), found):
                    yield _beside_dsa(row, stock.get((load, row.metric)))
                    if setup is setups.DSA:
                        stock[load, row.metric] = row.ours


def _beside_dsa(row: Measurement, value: float | None) -> Measurement:
    return row if value is None else replace(row, peer=setups.DSA.name, peer_value=value)


def _load_case(name: str, load: Load) -> str:
    context, requests, _ = load
    return f"{name}, {context >> 10}K tokens, {requests} at once"


def _load_rows(case: str, found: dict[str, Any]) -> Iterator[Measurement]:
    between = [1e3 * one for one in found["seconds_between"]]
    if len(between) < 2:
        yield Measurement(case, "failed: never were all of them decoding at once", 0.0, "higher")
        return
    yield Measurement(case, _MEDIAN, median(between), "lower")
    yield Measurement(case, "ITL, p99 ms", quantiles(between, n=100)[-1], "lower")
    yield Measurement(case, "tokens/s", found["tokens_per_second"], "higher")


def _failed(case: str, served: Served) -> Measurement:
    last = served.failure.strip().splitlines()[-1:]
    return Measurement(case, f"failed: {''.join(last)[:200]}", 0.0, "higher")


def read_points(rows: list[Row]) -> list[Point]:
    """Median times between tokens over the requests at once; a panel for each shape and context."""
    found = ((row, _LOAD_CASE.fullmatch(row.case)) for row in rows if row.metric == _MEDIAN)
    return [
        Point(
            f"{case['shape']}, {case['context']} tokens",
            case["setup"],
            "",
            float(case["requests"]),
            float(row.ours),
        )
        for row, case in found
        if case
    ]


def plot_loads(rows: list[Row], path: Path) -> None:
    """Write a PNG of the rows; raises ValueError as `draw_lines` does."""
    points = read_points(rows)
    panel = Panel("requests at once", _MEDIAN, log_x=True, log_y=True)
    title = f"Time between tokens, 8 layers: {rows[0].gpu}, {rows[0].commit}" if rows else ""
    draw_lines(points, {point.panel: panel for point in points}, title, path)


SUITE = Suite(
    name="engine",
    summary="SGLang's engine: needles found, and time between tokens, beside its own backend",
    device="cuda",
    measure=_measure,
    plot=plot_loads,
)
