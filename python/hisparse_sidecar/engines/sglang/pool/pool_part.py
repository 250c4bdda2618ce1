"""Our part of SGLang's device pool: whole pages, taken from its allocator for good."""

from typing import Any

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.requirements import require


def part_size(device_rows: int, num_requests: int, hot_slots: int, hot_share: float) -> int:
    """Rows of the part: a hot buffer for each request, at most `hot_share` of the pool.

    Args:
        device_rows: rows of the pool.
        num_requests: requests that may run, which have a row each besides.
        hot_slots: rows of a hot buffer.
        hot_share: 0 to 1.

    Raises:
        InvalidArgument: not one hot buffer fits; says what was found and needed.
    """
    require(0 < hot_share < 1, f"hot_share is {hot_share}, must be above 0 and below 1")
    most = int(device_rows * hot_share) // PAGE_TOKENS * PAGE_TOKENS
    needed = num_requests + hot_slots
    message = (
        f"hot_share {hot_share} of {device_rows} rows is {most}, a hot buffer of {hot_slots} and "
        f"a row for each of {num_requests} requests need {needed}"
    )
    require(most >= needed, message)
    return min(most, -(-num_requests * (hot_slots + 1) // PAGE_TOKENS) * PAGE_TOKENS)


class PoolPart:
    """Rows `first_row .. first_row + num_rows - 1` of every layer of the pool.

    Attributes:
        first_row: first of them.
        num_rows: how many.
    """

    def __init__(self, allocator: Any, num_rows: int) -> None:  # noqa: ANN401
        """Takes the pages.

        Args:
            allocator: SGLang's, of the pool's device pages, of which none is in use.
            num_rows: a multiple of 64.

        Raises:
            WrongState: they are not to be had, or lie apart.
        """
        self._allocator, self.num_rows = allocator, num_rows
        self.first_row = self._take()

    def take_again(self) -> None:
        """After SGLang has freed every page: takes the same pages.

        Raises:
            WrongState: they are other pages now.
        """
        found = self._take()
        if found != self.first_row:
            raise WrongState(f"our pages began at row {self.first_row}, now at {found}")

    def _take(self) -> int:
        rows = self._allocator.alloc(self.num_rows)
        if rows is None:
            free = self._allocator.available_size()
            raise WrongState(f"{free} rows of SGLang's pool are free, ours are {self.num_rows}")
        first = int(rows[0])
        if not torch.equal(rows, torch.arange(first, first + self.num_rows, device=rows.device)):
            raise WrongState(f"the {self.num_rows} rows from {first} on do not lie together")
        return first
