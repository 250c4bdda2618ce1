"""Measured times of flat selection and of HISA on one GPU, and the file that holds them."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from hisparse_sidecar.config.file import build_dataclass, read_values
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.requirements import require

_Value = TypeVar("_Value")
_FORMAT = 1
_AS_FAST = 1.03
_DEFAULTS = Path(__file__).parent / "gate_tables"


@dataclass(frozen=True)
class Cell:
    """Median times of one selection of `rows` rows, whose longest has `length` tokens."""

    length: int
    rows: int
    flat_us: float
    hisa_us: float


@dataclass(frozen=True)
class Setting:
    """What a grid was measured for."""

    index_heads: int
    num_kept_blocks: int
    block_tokens: int
    topk: int


@dataclass(frozen=True)
class Grid:
    """The times for one setting."""

    setting: Setting
    cells: tuple[Cell, ...]

    @cached_property
    def flat_up_to(self) -> dict[int, int]:
        """For each number of rows the length up to which flat was never slower; 0 = none.

        By less than `_AS_FAST` it counts as no slower: it is exact, and so much is noise.

        Lengths that were not measured belong to HISA from there on.
        """
        found: dict[int, int] = {}
        ended: set[int] = set()
        for cell in sorted(self.cells, key=lambda cell: cell.length):
            found.setdefault(cell.rows, 0)
            if cell.flat_us > _AS_FAST * cell.hisa_us:
                ended.add(cell.rows)
            elif cell.rows not in ended:
                found[cell.rows] = cell.length
        return found


@dataclass(frozen=True)
class GateTable:
    """All grids of one GPU.

    Attributes:
        gpu: its name as CUDA gives it, or "cpu".
        grids: one for each setting.
    """

    gpu: str
    grids: tuple[Grid, ...]

    def grid_for(self, setting: Setting) -> Grid | None:
        """The grid of a setting, but for the nearest number of kept blocks; None = none."""
        kept = setting.num_kept_blocks
        alike = [
            grid
            for grid in self.grids
            if replace(grid.setting, num_kept_blocks=kept) == setting and grid.cells
        ]
        return min(alike, key=lambda grid: abs(grid.setting.num_kept_blocks - kept), default=None)

    def to_values(self) -> dict[str, Any]:
        """Plain values, as the file holds them."""
        grids = [
            asdict(grid.setting) | {"cells": [asdict(cell) for cell in grid.cells]}
            for grid in self.grids
        ]
        return {"format": _FORMAT, "gpu": self.gpu, "grids": grids}


def read_table(path: Path) -> GateTable:
    """The table of a JSON file.

    Raises:
        InvalidArgument: it cannot be read, or a key or value does not fit; names the file.
    """
    try:
        values = read_values(path)
        found = values.get("format")
        require(found == _FORMAT, f"format is {found!r}, this version reads {_FORMAT}")
        known = {"format", "gpu", "grids"}
        require(set(values) == known, f"keys are {sorted(values)}, need {sorted(known)}")
        gpu = _require(values["gpu"], str, "gpu", "a string")
        grids = _require(values["grids"], list, "grids", "a list")
        made = tuple(_grid(one, f"grids.{i}.") for i, one in enumerate(grids))
        _require_once("setting", [grid.setting for grid in made])
        return GateTable(gpu, made)
    except (OSError, ValueError, OverflowError) as error:  # an integer no float can hold
        raise InvalidArgument(f"gate table {path}: {error}") from None


def _grid(values: object, prefix: str) -> Grid:
    setting = dict(_require(values, dict, prefix[:-1], "an object"))
    cells = _require(setting.pop("cells", None), list, f"{prefix}cells", "a list")
    made = tuple(_cell(cell, f"{prefix}cells.{number}") for number, cell in enumerate(cells))
    _require_once(f"{prefix}cells: length and rows", [(cell.length, cell.rows) for cell in made])
    found = build_dataclass(Setting, setting, prefix)
    for name, value in asdict(found).items():
        require(value >= 1, f"{prefix}{name} is {value}, must be >= 1")
    return Grid(found, made)


def _cell(values: object, key: str) -> Cell:
    cell = build_dataclass(Cell, _require(values, dict, key, "an object"), key + ".")
    least = min(cell.length, cell.rows)
    require(least >= 1, f"{key} has length or rows {least}, must be >= 1")
    for name in ("flat_us", "hisa_us"):
        time = getattr(cell, name)
        require(isfinite(time) and time > 0, f"{key}.{name} is {time}, must be finite and > 0")
    return cell


def _require_once(what: str, found: Sequence[object]) -> None:
    twice = [one for one, count in Counter(found).items() if count > 1]
    require(not twice, f"{what} {twice[:1]} stands twice, must stand once")


def _require(value: object, kind: type[_Value], key: str, what: str) -> _Value:
    if not isinstance(value, kind):
        raise InvalidArgument(f"key {key} is {value!r}, need {what}")
    return value


def write_table(table: GateTable, path: Path) -> None:
    """Writes the file whole or not at all, and its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(table.to_values(), indent=1) + "\n")
    unfinished.replace(path)


def with_grids(path: Path, gpu: str, grids: Sequence[Grid]) -> GateTable:
    """The table of a file, if there is one, with its grids of the same settings replaced.

    Raises:
        InvalidArgument: see `read_table`; or the file is of another GPU.
    """
    settings = {grid.setting for grid in grids}
    table = _table_of(path, gpu) if path.exists() else GateTable(gpu, ())
    kept = tuple(grid for grid in table.grids if grid.setting not in settings)
    return GateTable(gpu, kept + tuple(grids))


def user_table_path(gpu: str) -> Path:
    """Where `hisparse tune` leaves the table of a GPU: below XDG_CACHE_HOME, or ~/.cache."""
    # the base directory specification says to ignore a relative one
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = named if named.is_absolute() else Path.home() / ".cache"
    return folder / "hisparse" / f"gate-{_file_name(gpu)}.json"


def find_table(gpu: str) -> GateTable | None:
    """The grids of the user's table of a GPU, and those of the package's that it lacks.

    None where there is neither table.

    Raises:
        InvalidArgument: see `read_table`; or the table is of another GPU.
    """
    default, own = _DEFAULTS / f"{_file_name(gpu)}.json", user_table_path(gpu)
    found = _table_of(default, gpu) if default.exists() else None
    return with_grids(default, gpu, _table_of(own, gpu).grids) if own.exists() else found


def _table_of(path: Path, gpu: str) -> GateTable:
    table = read_table(path)
    require(table.gpu == gpu, f"gate table {path} is of {table.gpu!r}, this is {gpu!r}")
    return table


def _file_name(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
