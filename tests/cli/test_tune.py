"""`hisparse tune`: a small grid on the CPU, its table and where it goes."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hisparse_sidecar.cli.commands import tune
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.selection.flat import FlatSelector
from hisparse_sidecar.selection.gate_table import Cell, Setting, read_table, user_table_path
from hisparse_sidecar.selection.hisa import HisaSelector
from hisparse_sidecar.tuning import measure
from hisparse_sidecar.tuning.measure import TunePlan

SETTING = ["--index-heads", "4", "--topk", "64", "--num-kept-blocks", "2"]
SMALL = ["--device", "cpu", "--runs", "1", "--warm-ups", "0", *SETTING]
GRID = [*SMALL, "--lengths", "512,130", "--rows", "2,1"]


def run_tune(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    tune.add_parser(parser.add_subparsers())
    args = parser.parse_args(["tune", *arguments])
    exit_code: int = args.run(args)
    return exit_code


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_table_goes_to_the_users_cache_folder_under_the_devices_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_tune(*GRID) == 0

    table = read_table(user_table_path("cpu"))
    assert table.gpu == "cpu"
    (grid,) = table.grids
    assert grid.setting == Setting(4, 2, 128, 64)
    found = [(cell.length, cell.rows) for cell in grid.cells]
    assert found == [(130, 1), (130, 2), (512, 1), (512, 2)]
    assert all(cell.flat_us > 0 and cell.hisa_us > 0 for cell in grid.cells)
    shown = capsys.readouterr()
    assert "4 index heads, 2 kept blocks" in shown.out
    assert str(user_table_path("cpu")) in shown.out.replace("\n", "")
    assert "4/4" in shown.err  # the bar has counted every cell


def test_json_is_one_object_with_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table.json"

    assert run_tune(*GRID, "--json", "--output", str(path)) == 0

    found = json.loads(capsys.readouterr().out)
    assert found == {"path": str(path), "table": json.loads(path.read_text())}
    assert not user_table_path("cpu").exists()


def test_grids_of_other_settings_are_kept_and_those_of_the_same_replaced(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    cells = ["--lengths", "130", "--rows", "1", "--output", str(path)]
    for heads in ("4", "8"):
        run_tune(*SMALL, *cells, "--index-heads", heads)
    run_tune(*SMALL, *cells, "--index-heads", "4", "--rows", "3")

    grids = {grid.setting.index_heads: grid for grid in read_table(path).grids}

    assert {heads: [cell.rows for cell in grid.cells] for heads, grid in grids.items()} == {
        8: [1],
        4: [3],
    }


def test_what_is_named_twice_is_measured_once(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    twice = ["--lengths", "130,130", "--rows", "2,2", "--index-heads", "4,4"]

    run_tune(*SMALL, *twice, "--output", str(path))

    (grid,) = read_table(path).grids  # a table in which a cell stands twice is refused
    assert [(cell.length, cell.rows) for cell in grid.cells] == [(130, 2)]


def test_a_table_of_another_gpu_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"format": 1, "gpu": "GPU Y", "grids": []}))
    with pytest.raises(InvalidArgument, match="is of 'GPU Y', this is 'cpu'"):
        run_tune(*GRID, "--output", str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--rows", "0"], "a length, a number of rows, heads, topk or runs is 0, needs 1"),
        (["--topk", "257"], "2 blocks hold 256 tokens, topk needs 257"),
        (["--block-tokens", "96"], "block_tokens is 96, must be a multiple of 64"),
        (["--num-kept-blocks", "1"], "num_kept_blocks is 1, must be >= 2"),
        (["--graphs"], "graphs need a GPU, the device is cpu"),
        (["--device", "cuda:9"], "finds . CUDA devices"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        run_tune(*GRID, *changes)


def plan(**changes: Any) -> TunePlan:
    settings = {"lengths": (300, 500), "rows": (1, 400), "num_warm_ups": 0, "num_runs": 1}
    return TunePlan(Setting(4, 8, 64, 48), device=torch.device("cpu"), **settings | changes)  # type: ignore[arg-type]


def test_a_prefill_chunk_lies_within_its_sequence() -> None:
    assert plan().cells == [(300, 1), (500, 1), (500, 400)]


def test_both_paths_select_the_same_while_the_kept_blocks_hold_the_sequence() -> None:
    for length, rows in ((500, 3), (500, 400)):
        keys, query = measure.resident_rows(plan(), length, rows)
        flat, hisa = (one.select(query, keys) for one in (FlatSelector(), HisaSelector(8)))
        assert torch.equal(flat, hisa)
        assert (flat[:, 0] >= 0).all()


def test_cells_that_do_not_fit_are_reported_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_fits", lambda plan, length, rows: length < 500)
    seen: list[Cell | None] = []

    grid = measure.measure_grid(plan(), seen.append)

    assert [(cell.length, cell.rows) for cell in grid.cells] == [(300, 1)]
    assert [cell is None for cell in seen] == [False, True, True]
