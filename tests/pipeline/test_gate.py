"""The gate's tables and its choice, from numbers that the host knows."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import InvalidArgument, WrongState
from hisparse_sidecar.selection.gate import Gate
from hisparse_sidecar.selection.gate_table import (
    Cell,
    GateTable,
    Grid,
    Setting,
    find_table,
    read_table,
    user_table_path,
    write_table,
)

pytestmark = pytest.mark.cpu_only
HISA = SelectionConfig("hisa")


def grid(heads: int = 64, kept: int = 64, flat_up_to: int = 8192, block_tokens: int = 128) -> Grid:
    """Flat wins at 1 row up to a length, at 64 rows up to a quarter of it."""
    cells = [
        Cell(length, rows, 10.0, 11.0 if length <= most else 9.0)
        for length in (2048, 4096, 8192, 16384, 32768)
        for rows, most in ((1, flat_up_to), (64, flat_up_to // 4), (4096, 0))
    ]
    return Grid(Setting(heads, kept, block_tokens, 2048), tuple(cells))


TABLE = GateTable("GPU Y", (grid(), grid(32, 64, 16384), grid(64, 128, 32768)))


@pytest.mark.parametrize(
    ("heads", "length", "rows", "flat"),
    [
        (64, 1, 1, True),
        (64, 8192, 1, True),
        (64, 8193, 1, False),
        (64, 2048, 64, True),
        (64, 2049, 64, False),
        (64, 8192, 7, True),  # nearer to 1 than to 64, as factors go
        (64, 8192, 9, False),
        (64, 8192, 8, True),  # as near to both: the lesser
        (64, 128, 4096, False),
        (64, 128, 100000, False),
        (32, 16384, 1, True),
        (16, 128, 1, False),  # never measured
        (64, 128, 0, False),
    ],
)
def test_the_path_follows_from_length_rows_and_heads(
    heads: int, length: int, rows: int, flat: bool
) -> None:
    setting = Setting(heads, 64, 128, 2048)
    assert Gate(TABLE).prefers_flat(HISA, setting, length, rows) is flat
    for other in (replace(setting, block_tokens=64), replace(setting, topk=512)):
        assert not Gate(TABLE).prefers_flat(HISA, other, length, rows)


def test_the_grid_of_the_nearest_number_of_blocks_counts() -> None:
    gate = Gate(TABLE)
    for kept, flat in ((64, False), (90, False), (100, True), (512, True)):
        found = gate.prefers_flat(HISA, Setting(64, kept, 128, 2048), 32768, 1)
        assert found is flat


def test_each_block_size_has_its_own_grid_however_near_another_is() -> None:
    gate = Gate(GateTable("GPU Y", (grid(kept=512), grid(flat_up_to=32768, block_tokens=64))))
    for block_tokens, longest in ((128, 8192), (64, 32768)):
        setting = Setting(64, 64, block_tokens, 2048)
        assert gate.prefers_flat(HISA, setting, longest, 1)
        assert not gate.prefers_flat(HISA, setting, longest + 1, 1)


def test_a_grid_without_cells_is_none() -> None:
    empty = Grid(TABLE.grids[0].setting, ())
    assert GateTable("GPU Y", (empty,)).grid_for(empty.setting) is None
    assert GateTable("GPU Y", (empty, grid(kept=8))).grid_for(empty.setting) == grid(kept=8)


def test_only_hisa_is_replaced_and_only_where_the_gate_is_not_off() -> None:
    gate = Gate(TABLE)
    for selection in (SelectionConfig("hisa", gate="off"), SelectionConfig("misa")):
        assert not gate.prefers_flat(selection, TABLE.grids[0].setting, 1, 1)
    for table in (None, GateTable("GPU Y", ())):
        assert not Gate(table).prefers_flat(HISA, TABLE.grids[0].setting, 1, 1)


def test_one_slow_length_ends_the_lengths_that_are_flat() -> None:
    times = {1024: (5, 6), 2048: (7, 7), 4096: (9, 8), 8192: (9, 10)}
    cells = tuple(Cell(length, 1, *pair) for length, pair in reversed(times.items()))
    assert Grid(TABLE.grids[0].setting, cells).flat_up_to == {1: 2048}


def test_a_rank_adopts_a_newer_table_and_no_older_one() -> None:
    gate = Gate()
    gate.adopt(TABLE, 3)
    assert (gate.table, gate.epoch) == (TABLE, 3)
    with pytest.raises(WrongState, match="epoch of the gate is 3, cannot adopt epoch 3"):
        gate.adopt(None, 3)
    assert gate.table is TABLE


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.json"
    write_table(TABLE, path)
    assert read_table(path) == TABLE
    assert [file.name for file in path.parent.iterdir()] == ["table.json"]


def changed(**changes: Any) -> dict[str, Any]:
    return TABLE.to_values() | changes


CELL = {"length": 1, "rows": 1, "flat_us": 1, "hisa_us": 2.0}
SETTING = {"index_heads": 1, "num_kept_blocks": 2, "block_tokens": 64, "topk": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(format=2), "format is 2, this version reads 1"),
        (changed(more=1), r"keys are \['format', 'gpu', 'grids', 'more'\]"),
        (changed(gpu=3), "key gpu is 3, need a string"),
        (changed(grids={}), "key grids is {}, need a list"),
        (changed(grids=[3]), r"key grids.0 is 3, need an object"),
        (changed(grids=[SETTING]), r"key grids.0.cells is None, need a list"),
        (changed(grids=[{"cells": []}]), "key grids.0.index_heads is missing"),
        (changed(grids=[SETTING | {"cells": [1]}]), "key grids.0.cells.0 is 1, need an object"),
        (
            changed(grids=[SETTING | {"cells": [CELL | {"rows": "1"}]}]),
            "key grids.0.cells.0.rows is '1', need an integer",
        ),
        (
            changed(grids=[SETTING | {"cells": [CELL | {"rows": 0}]}]),
            "grids.0.cells.0 has length or rows 0, must be >= 1",
        ),
        (
            changed(grids=[SETTING | {"cells": [CELL, CELL]}]),
            r"grids.0.cells: length and rows \[\(1, 1\)\] stands twice",
        ),
        (changed(grids=[SETTING | {"cells": []}] * 2), "setting .* stands twice"),
        (
            changed(grids=[SETTING | {"cells": [CELL | {"us": 0}]}]),
            "unknown key grids.0.cells.0.us; known keys: grids.0.cells.0.flat_us",
        ),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_file_and_key(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InvalidArgument, match=f"gate table {path}: {message}"):
        read_table(path)


def test_the_users_table_of_the_gpu_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = user_table_path("GPU Y")
    assert path == tmp_path / "hisparse" / "gate-gpu-y.json"
    assert find_table("GPU Y") is None
    write_table(TABLE, path)
    assert find_table("GPU Y") == TABLE
    with pytest.raises(InvalidArgument, match="is of 'GPU Y', this is 'gpu y'"):
        find_table("gpu y")


def test_the_users_grids_stand_beside_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gpu = "NVIDIA H100 80GB HBM3"
    default = find_table(gpu)
    assert default is not None
    own = grid(32)
    write_table(GateTable(gpu, (own,)), user_table_path(gpu))

    found = find_table(gpu)

    assert found is not None
    assert set(found.grids) == {own} | {one for one in default.grids if one.setting != own.setting}
    assert found.grid_for(Setting(64, 64, 128, 2048)) == default.grid_for(
        Setting(64, 64, 128, 2048)
    )


@pytest.mark.parametrize("time", [float("nan"), float("inf"), -float("inf"), -1.0, 0.0])
@pytest.mark.parametrize("name", ["flat_us", "hisa_us"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, name: str, time: float) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(changed(grids=[SETTING | {"cells": [CELL | {name: time}]}])))
    message = f"{path}: grids.0.cells.0.{name} is {time}, must be finite and > 0"
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        read_table(path)


def test_a_time_that_no_float_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(changed(grids=[SETTING | {"cells": [CELL | {"flat_us": 10**400}]}])))
    with pytest.raises(InvalidArgument, match=f"{path}: int too large"):
        read_table(path)


@pytest.mark.parametrize("name", list(SETTING))
def test_a_setting_below_1_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "table.json"
    for value in (0, -1):
        path.write_text(json.dumps(changed(grids=[SETTING | {name: value, "cells": []}])))
        with pytest.raises(InvalidArgument, match=f"grids.0.{name} is {value}, must be >= 1"):
            read_table(path)


@pytest.mark.parametrize("gpu", ["NVIDIA H100 80GB HBM3", "NVIDIA H200"])
def test_the_package_has_tables_for_both_sizes_of_hopper(gpu: str) -> None:
    table = find_table(gpu)
    assert table is not None
    for heads in (32, 64):
        found = table.grid_for(Setting(heads, 64, 128, 2048))
        assert found is not None
        assert set(found.flat_up_to) == {1, 8, 64, 256, 4096}


def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert user_table_path("cpu") == Path.home() / ".cache/hisparse/gate-cpu.json"
