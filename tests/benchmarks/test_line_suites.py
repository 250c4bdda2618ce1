"""The suites `attend`, `swap` and `engine`: their cases, and what they draw."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import suite_attend, suite_engine, suite_swap
from benchmarks.lines import Point
from benchmarks.ops.case import Case
from hisparse_sidecar.cli.bench.rows import Environment, Measurement, Row, make_row
from tests.benchmarks.stand_ins import HostPool, NoPeers

ENVIRONMENT = Environment("NVIDIA H100", "580", "2.11.0", "3.6.0", "abc1234")
DECODE = "sparse_mla batch 8, L=64K, fp8_ds_mla, 16 heads"
PREFILL = "sparse_mla 4096 rows, L=64K, bf16, 64 heads, random lists"
UNSPLIT = "sparse_mla batch 8, L=64K, fp8_ds_mla, 64 heads, unsplit"
MISSES = "resolve + swap_in batch 8, 10 % misses, L=64K"
RESIDENT = "resolve + swap_in batch 8, all resident, L=64K"


def row(case: str, metric: str, ours: float, peer: str = "", value: float | None = None) -> Row:
    better = "lower" if "median" in metric else "higher"
    measured = Measurement(case, metric, ours, better, peer, value)  # type: ignore[arg-type]
    return make_row("suite", measured, ENVIRONMENT)


ATTEND_ROWS = [
    row(DECODE, "median us", 10.0, "FlashMLA, padded to 64 heads", 30.0),
    row(DECODE, "GB/s", 900.0),
    row(UNSPLIT, "median us", 40.0),
    row(PREFILL, "median us", 2000.0),
]
SWAP_ROWS = [
    row(MISSES, "median us", 20.0, "SGLang", 40.0),
    row(MISSES, "link GB/s", 30.0, "SGLang", 15.0),
    row(RESIDENT, "median us", 5.0),
]

CACHED = "DeepSeek-V3.2, hisparse, hisa, offload, prefix cache, 128K tokens, 8 at once"
ENGINE_ROWS = [
    row("48 needles, dsa", "right %", 100.0),
    row(CACHED, "ITL, median ms", 2.5, "dsa", 2.0),
    row(CACHED, "tokens/s", 3000.0),
]


def test_attend_has_every_batch_head_count_and_layout() -> None:
    cases = suite_attend.attend_cases(NoPeers(), HostPool())  # type: ignore[arg-type]
    names = [case.name for case in cases]
    splits = 3 * (5 + 5 + 5) + 2 * (3 + 3 + 4)  # of batches up to 8 also small ones
    assert len(names) == len(set(names)) == 2 * 4 * (5 + 1) + splits + 4
    assert {DECODE, PREFILL, UNSPLIT} <= set(names)
    assert "sparse_mla batch 128, L=64K, bf16, 8 heads" in names


def test_swap_has_every_batch_and_miss_rate() -> None:
    cases = suite_swap.all_cases(NoPeers(), HostPool())  # type: ignore[arg-type]
    names = [case.name for case in cases]
    assert len(names) == len(set(names)) == 4 * 4
    assert {MISSES, RESIDENT} <= set(names)


@pytest.mark.parametrize(
    ("cases", "read"),
    [
        (suite_attend.attend_cases, suite_attend.read_points),
        (suite_swap.all_cases, suite_swap.read_points),
    ],
    ids=["attend", "swap"],
)
def test_every_case_of_the_suites_has_a_point(
    cases: Callable[..., Iterator[Case]], read: Callable[[list[Row]], list[Point]]
) -> None:
    for case in cases(NoPeers(), HostPool()):
        assert [point.y for point in read([row(case.name, "median us", 1.0)])] == [1.0]


def test_attention_is_drawn_over_batch_and_prefill_over_heads() -> None:
    assert suite_attend.read_points(ATTEND_ROWS) == [
        Point("decode, fp8_ds_mla", "16 heads", "", 8.0, 10.0),
        Point("decode, fp8_ds_mla", "16 heads", "FlashMLA", 8.0, 30.0),
        Point("decode, fp8_ds_mla, by splits of keys", "64 heads, unsplit", "", 8.0, 40.0),
        Point("prefill", "bf16, random", "", 64.0, 2000.0),
    ]


def test_swap_is_drawn_over_the_miss_rate() -> None:
    assert suite_swap.read_points(SWAP_ROWS) == [
        Point("median us", "batch 8", "", 10.0, 20.0),
        Point("median us", "batch 8", "SGLang", 10.0, 40.0),
        Point("link GB/s", "batch 8", "", 10.0, 30.0),
        Point("link GB/s", "batch 8", "SGLang", 10.0, 15.0),
        Point("median us", "batch 8", "", 0.0, 5.0),
    ]


def test_times_between_tokens_are_drawn_over_the_requests() -> None:
    line = "hisparse, hisa, offload, prefix cache"
    assert suite_engine.read_points(ENGINE_ROWS) == [
        Point("DeepSeek-V3.2, 128K tokens", line, "", 8.0, 2.5)
    ]


@pytest.mark.parametrize(
    ("plot", "rows"),
    [
        (suite_attend.plot_latency, ATTEND_ROWS),
        (suite_swap.plot_misses, SWAP_ROWS),
        (suite_engine.plot_loads, ENGINE_ROWS),
    ],
    ids=["attend", "swap", "engine"],
)
def test_rows_become_an_image(
    plot: Callable[[list[Row], Path], None], rows: list[Row], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    plot(rows, tmp_path / "suite.png")
    assert (tmp_path / "suite.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="0 points to draw"):
        plot([], tmp_path / "none.png")
