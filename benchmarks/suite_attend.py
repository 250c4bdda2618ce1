"""Suite `attend`: sparse MLA on one GPU over batch and heads, beside FlashMLA.

The cases of `ops`, and more shapes of them: the same checks, inputs and timing. Last,
prefill chunks with their selection, beside dense attention.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.lines import Panel, Point, draw_lines
from hisparse_sidecar.cli.bench.rows import Measurement, Row
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch

if TYPE_CHECKING:
    from benchmarks.ops.case import Case
    from benchmarks.ops.peers import Peers
    from benchmarks.ops.pinned import PinnedPool

_HEADS, _BATCHES = (128, 64, 16, 8), (1, 2, 8, 32, 128)
_SPLIT_HEADS = (128, 64, 16)
_SPLITS = "decode, fp8_ds_mla, by splits of keys"
_CHUNKS = "chunks with their selection"
_DECODE = re.compile(
    r"sparse_mla batch (?P<x>\d+), L=\w+, (?P<layout>\w+), (?P<heads>\d+) heads"
    r"(?:, (?P<split>.+))?"
)
_PREFILL = re.compile(
    r"sparse_mla (?P<rows>\d+) rows, L=\w+, (?P<layout>\w+), (?P<x>\d+) heads, (?P<lists>\w+) lists"
)
_CHUNK = re.compile(r"chunk of \d+ rows, L=(?P<x>\d+)K, (?P<layout>\w+), \d+ heads, whole")


def attend_cases(peers: "Peers", pool: "PinnedPool") -> "Iterator[Case]":
    """Decode of each layout, in other splits of keys, prefill, whole chunks; `pool` is not used."""
    from benchmarks.ops.attention_cases import decode_case, prefill_case
    from benchmarks.ops.inputs import BF16_ROWS, FP8_ROWS
    from benchmarks.step.chunk_cases import chunk_cases

    del pool
    for layout in (FP8_ROWS, BF16_ROWS):
        for heads in _HEADS:
            for batch in _BATCHES:
                yield decode_case(peers, batch, heads, layout)
    yield from _split_cases(peers)
    for layout in (FP8_ROWS, BF16_ROWS):
        for heads in _HEADS:
            yield prefill_case(peers, heads, layout)
    yield from chunk_cases()


def _split_cases(peers: "Peers") -> "Iterator[Case]":
    from benchmarks.ops.attention_cases import decode_case, other_splits
    from benchmarks.ops.inputs import FP8_ROWS

    for heads in _SPLIT_HEADS:
        for batch in _BATCHES:
            for split_keys in other_splits(heads, batch):
                yield decode_case(peers, batch, heads, FP8_ROWS, split_keys)


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    from benchmarks.ops.run_suite import run_suite

    yield from run_suite(stopwatch, attend_cases, ("FlashMLA",))


def read_points(rows: list[Row]) -> list[Point]:
    """Times of decode over batch, a line for each number of heads, and of prefill over heads.

    Decode in other splits than the default has a panel of its own, and so have whole chunks.
    """
    points = []
    for row in rows:
        placed = _place(row.case)
        if row.metric != "median us" or placed is None:
            continue
        points.append(Point(*placed[:2], "", placed[2], float(row.ours)))
        if row.peer:
            peer = row.peer.split(",")[0]  # how it pads is said in the rows
            points.append(Point(*placed[:2], peer, placed[2], float(row.peer_value)))
    return points


def _place(case: str) -> tuple[str, str, float] | None:
    """Panel, line and x of a case; None = it is not drawn."""
    if found := _CHUNK.fullmatch(case):
        return _CHUNKS, found["layout"], float(found["x"])
    if found := _PREFILL.fullmatch(case):
        return "prefill", f"{found['layout']}, {found['lists']}", float(found["x"])
    if found := _DECODE.fullmatch(case):
        panel, line = f"decode, {found['layout']}", f"{found['heads']} heads"
        if found["split"]:
            panel, line = _SPLITS, f"{line}, {found['split']}"
        return panel, line, float(found["x"])
    return None


def plot_latency(rows: list[Row], path: Path) -> None:
    """Write a PNG of the rows; raises ValueError as `draw_lines` does."""
    panels = {
        f"decode, {layout}": Panel("batch", "us", log_x=True, log_y=True)
        for layout in ("fp8_ds_mla", "bf16")
    }
    panels[_SPLITS] = Panel("batch", "us", log_x=True, log_y=True)
    panels["prefill"] = Panel("heads", "us", log_x=True, log_y=True)
    panels[_CHUNKS] = Panel("K tokens", "us", log_x=True, log_y=True)
    title = f"sparse MLA, top 2048 of 64K: {rows[0].gpu}, {rows[0].commit}" if rows else ""
    draw_lines(read_points(rows), panels, title, path)


SUITE = Suite(
    name="attend",
    summary="sparse MLA on a GPU over batch, heads and row layout (us, rates), beside FlashMLA",
    device="cuda",
    measure=_measure,
    plot=plot_latency,
)
