"""Tables of a step in a place that never moves, and matrices behind them, in one transfer."""

import numpy as np
import pytest
import torch

from hisparse_sidecar.backends import find_device
from hisparse_sidecar.engine_rows.planned_tables import Array, PlannedTables, matrix_bytes
from tests.launches import Launches
from tests.pipeline import world

BLANKS = {
    "rows": np.full(3, -1, np.int32),
    "bases": np.zeros(5, np.int64),
    "count": np.zeros(1, np.int32),
}


def int32(*numbers: int) -> Array:
    return np.array(numbers, np.int32)


def int64(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


@pytest.fixture
def planned() -> PlannedTables:
    return PlannedTables(BLANKS, 2 * matrix_bytes(3, 7), find_device(world.PLACE.device))


def numbers_in(planned: PlannedTables) -> dict[str, list[int]]:
    return {name: table.tolist() for name, table in planned.tables.items()}


def test_tables_begin_blank(planned: PlannedTables) -> None:
    assert numbers_in(planned) == {"rows": [-1, -1, -1], "bases": [0] * 5, "count": [0]}


def test_a_step_fills_what_it_has_and_leaves_the_rest_blank(planned: PlannedTables) -> None:
    places = {name: table.data_ptr() for name, table in planned.tables.items()}
    large = {"rows": int32(7, 8, 9), "bases": int64(1, 2, 3, 2**40, -5), "count": int32(3)}
    planned.load(large, {})
    assert numbers_in(planned) == {name: given.tolist() for name, given in large.items()}

    planned.load({"rows": int32(4), "bases": int64(6, 7)}, {})

    assert numbers_in(planned) == {"rows": [4, -1, -1], "bases": [6, 7, 0, 0, 0], "count": [0]}
    assert {name: table.data_ptr() for name, table in planned.tables.items()} == places
    assert all(place % 16 == places["rows"] % 16 for place in places.values())


def test_matrices_come_as_they_are_and_leave_the_tables_alone(planned: PlannedTables) -> None:
    wide = np.arange(21, dtype=np.int32).reshape(3, 7)
    given = {"pages": wide[:2, ::2], "others": wide}

    found = planned.load({"rows": int32(1, 2)}, given)

    assert {name: matrix.tolist() for name, matrix in found.items()} == {
        name: matrix.tolist() for name, matrix in given.items()
    }
    assert numbers_in(planned) == {"rows": [1, 2, -1], "bases": [0] * 5, "count": [0]}


@pytest.mark.cpu_only
def test_all_of_it_is_one_transfer(planned: PlannedTables) -> None:
    launches = Launches()

    with launches:
        planned.load({"rows": int32(1, 2), "bases": int64(3)}, {"pages": int32(1, 2).reshape(1, 2)})

    assert launches.names == ["aten::copy_"]


@pytest.mark.parametrize("wrong", [{"rows": int32(1, 2, 3, 4)}, {"rows": int64(1)}])
def test_numbers_that_do_not_fit_a_table_are_refused(
    wrong: dict[str, Array], planned: PlannedTables
) -> None:
    with pytest.raises(AssertionError, match="rows"):
        planned.load(wrong, {})

    assert torch.equal(planned.tables["bases"].cpu(), torch.zeros(5, dtype=torch.int64))
