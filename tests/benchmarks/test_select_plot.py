"""The plot of the suite `select`: what it reads from the rows, and that it draws it."""

from pathlib import Path

import pytest

from benchmarks.select.plot import FLOOR, OURS, Point, plot_lengths, read_points
from hisparse_sidecar.cli.bench.rows import Environment, Measurement, Row, make_row

ENVIRONMENT = Environment("NVIDIA H100", "580", "2.11.0", "3.6.0", "abc1234")
PEER = "DeepGEMM + DeepSelect"


def row(case: str, metric: str, ours: float, peer: float | None = None) -> Row:
    better = "lower" if metric == "median us" else "higher"
    named = PEER if peer is not None else ""
    measured = Measurement(case, metric, ours, better, named, peer)  # type: ignore[arg-type]
    return make_row("select", measured, ENVIRONMENT)


ROWS = [
    row("ceiling fp8", "TFLOP/s", 1400.0),
    row("decode batch 8, L=8K, 64 heads", "median us", 20.0, 40.0),
    row("decode batch 8, L=8K, 64 heads", "share of the ceiling", 0.5, 0.25),
    row("decode batch 8, L=8K, 64 heads, flat", "median us", 30.0, 41.0),
    row("decode batch 8, L=8K, 64 heads, flat", "share of the ceiling", 0.3, 0.25),
    row("decode batch 8, L=1024K, 64 heads", "median us", 30.0, 600.0),
    row("decode batch 8, L=128K, 32 heads", "median us", 1.0, 1.0),
    row("decode batch 8, L=128K, 64 heads, next_n 2", "median us", 1.0, 1.0),
    row("prefill 4096 rows, L=64K, 64 heads", "error: OutOfMemoryError", 0.0),
    row("prefill 4096 rows, L=128K, 64 heads", "median us", 1000.0),
    row("prefill 4096 rows, L=128K, 64 heads", "share of the ceiling", 0.25),
]


def test_times_of_normal_rows_and_64_heads_are_points() -> None:
    assert read_points(ROWS) == sorted(
        [
            Point("decode batch 8", OURS, 8, 20.0),
            Point("decode batch 8", OURS, 1024, 30.0),
            Point("decode batch 8", PEER, 8, 40.0),
            Point("decode batch 8", PEER, 1024, 600.0),
            Point("decode batch 8", FLOOR, 8, 10.0),
            Point("decode batch 8", "ours, flat", 8, 30.0),
            Point("prefill 4096 rows", OURS, 128, 1000.0),
            Point("prefill 4096 rows", FLOOR, 128, 250.0),
        ]
    )


@pytest.mark.parametrize("rows", [ROWS, ROWS[-2:]], ids=["all", "one length"])
def test_rows_become_an_image(rows: list[Row], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    path = tmp_path / "select.png"
    plot_lengths(rows, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_times_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 times over a context length, at least 1 needed"):
        plot_lengths(ROWS[:1], tmp_path / "select.png")
