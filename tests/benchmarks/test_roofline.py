"""The roofline of a results file: the points it shows, and the image."""

from pathlib import Path

import pytest

from benchmarks.ops.roofline import Point, plot_roofline, read_ceilings, read_points
from hisparse_sidecar.cli.bench.rows import Environment, Measurement, Row, make_row

ENVIRONMENT = Environment("NVIDIA H100", "580", "2.11.0", "3.6.0", "abc1234")
CEILINGS = [
    ("fp8", "TFLOP/s", 1300.0),
    ("bf16", "TFLOP/s", 750.0),
    ("device", "GB/s", 3000.0),
    ("to_device", "GB/s", 54.0),
    ("to_host", "GB/s", 55.0),
]


def _row(
    case: str, metric: str, ours: float, peer: str = "", peer_value: float | None = None
) -> Row:
    measured = Measurement(case, metric, ours, "higher", peer, peer_value)
    return make_row("ops", measured, ENVIRONMENT)


CEILING_ROWS = [_row(f"ceiling {name}", unit, value) for name, unit, value in CEILINGS]
ROWS = [
    *CEILING_ROWS,
    _row("FlashMLA", "absent: ImportError: no module", 0.0),
    _row("index_logits 4096 rows", "median us", 9000.0, "DeepGEMM", 8300.0),
    _row("index_logits 4096 rows", "TFLOP/s", 900.0, "DeepGEMM", 1000.0),
    _row("index_logits 4096 rows", "FLOP/B", 2000.0),
    _row("refine_logits batch 1", "GB/s", 500.0),
    _row("refine_logits batch 1", "FLOP/B", 60.0),
    _row("topk 1 x 8192", "GB/s", 10.0, "torch.topk", 2.0),
    _row("topk 1 x 8192", "GB/s", 10.0, "DeepSelect", 4.0),
    _row("swap_in 2048 rows", "link GB/s", 40.0),
    _row("spill 64 rows", "error: WrongResultError: rows", 0.0),
]


def test_ceilings_are_read_in_operations_and_bytes_a_second() -> None:
    ceilings = read_ceilings(ROWS)
    assert list(ceilings) == [name for name, _, _ in CEILINGS]
    assert (ceilings["fp8"], ceilings["to_host"]) == (1300e12, 55e9)


def test_a_point_is_one_case_of_ours_or_of_one_peer() -> None:
    assert read_points(ROWS) == [
        Point("index_logits 4096 rows", "", 2000.0, 900e12, over_link=False),
        Point("index_logits 4096 rows", "DeepGEMM", 2000.0, 1000e12, over_link=False),
        # 500 GB/s at 60 operations a byte
        Point("refine_logits batch 1", "", 60.0, 30e12, over_link=False),
        Point("topk 1 x 8192", "", 0.0, 10e9, over_link=False),
        Point("topk 1 x 8192", "torch.topk", 0.0, 2e9, over_link=False),
        Point("topk 1 x 8192", "DeepSelect", 0.0, 4e9, over_link=False),
        Point("swap_in 2048 rows", "", 0.0, 40e9, over_link=True),
    ]
    assert read_points(ROWS)[0].op == "index_logits"


def test_rows_become_an_image(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    path = tmp_path / "ops.png"
    plot_roofline(ROWS, path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("rows", "found"), [(ROWS[5:], "0 ceilings and 7"), (CEILING_ROWS, "5 ceilings and 0")]
)
def test_without_ceilings_or_cases_there_is_nothing_to_draw(
    rows: list[Row], found: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"{found} cases, at least 1 each needed"):
        plot_roofline(rows, tmp_path / "ops.png")
