"""What the host plans of a step, on the device: tables of fixed place, brought in one transfer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from hisparse_sidecar._core import StepTables

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

_ALIGN_BYTES = 16  # kernels are specialised by what their pointers are multiples of
_NUMBERS: dict[int, np.dtype[Any]] = {4: np.dtype(np.int32), 8: np.dtype(np.int64)}  # by bytes
_DTYPES = {4: torch.int32, 8: torch.int64}


class PlannedTables:
    """One-dimensional tables side by side, and room behind them for a step's matrices.

    Attributes:
        tables: by name, on the device; they never move. Before the first `load` each is blank.
    """

    def __init__(self, blanks: Arrays, matrix_bytes: int, device: torch.device) -> None:
        """Blank tables.

        Args:
            blanks: of each table, by name, what it holds where a step has nothing for it.
            matrix_bytes: most bytes of a step's matrices, each one rounded up to 16.
            device: where the tables lie.
        """
        self._starts, total = {}, 0
        for name, blank in blanks.items():
            self._starts[name] = total
            total += _padded(blank.nbytes)
        self._blanks, self._end = blanks, total
        self._blank = np.zeros(total, np.uint8)
        for name, blank in blanks.items():
            self._put(self._blank, name, blank)
        self._content = torch.zeros(total + matrix_bytes, dtype=torch.uint8, device=device)
        self._content[:total] = torch.from_numpy(self._blank).to(device)
        self.tables = {
            name: _view(self._content, self._starts[name], blank) for name, blank in blanks.items()
        }

    def load(self, numbers: Arrays, matrices: Arrays) -> dict[str, torch.Tensor]:
        """Writes a step's tables; the host waits for no transfer.

        Args:
            numbers: first numbers of each table, whose others become blank.
            matrices: of any number of rows and columns that there is room for.

        Returns:
            The matrices on the device; valid until the next `load`.
        """
        starts, total = {}, self._end
        for name, matrix in matrices.items():
            starts[name] = total
            total += _padded(matrix.nbytes)
        staged = torch.empty(total, dtype=torch.uint8, pin_memory=self._content.is_cuda)
        host: Array = staged.numpy()
        host[: self._end] = self._blank
        for name, given in numbers.items():
            self._put(host, name, given)
        for name, start in starts.items():
            host[start : start + matrices[name].nbytes] = _bytes_of(matrices[name])
        self._content[:total].copy_(staged, non_blocking=True)
        return {name: _view(self._content, start, matrices[name]) for name, start in starts.items()}

    def _put(self, host: Array, name: str, given: Array) -> None:
        blank, start = self._blanks[name], self._starts[name]
        assert given.dtype == blank.dtype, (name, given.dtype, blank.dtype)
        assert len(given) <= len(blank), (name, len(given), len(blank))
        host[start : start + given.nbytes] = _bytes_of(given)


def planned_arrays(plan: "StepTables") -> dict[str, Array]:
    """Each table of a plan by its name, where the plan has it."""
    content, found = plan[0], {}
    for name, start, width, rows, columns in plan[1]:
        count = rows if columns is None else rows * columns
        flat = np.frombuffer(content, _NUMBERS[width], count, start)
        found[name] = flat if columns is None else flat.reshape(rows, columns)
    return found


def matrix_bytes(rows: int, columns: int) -> int:
    """Bytes of a matrix of int32, rounded up as in `PlannedTables`."""
    return _padded(4 * rows * columns)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGN_BYTES) * _ALIGN_BYTES


def _bytes_of(given: Array) -> Array:
    return np.ascontiguousarray(given).reshape(-1).view(np.uint8)


def _view(content: torch.Tensor, start: int, like: Array) -> torch.Tensor:
    numbers = content[start : start + like.nbytes].view(_DTYPES[like.dtype.itemsize])
    return numbers.view(like.shape)
