"""Where the blocks of a selection lie, and how it gets their slots: all resident, or some not.

`InOrder` and `LookedUp` change nothing; `Fetched` claims slots and brings the missing blocks in.
"""

from dataclasses import fields
from typing import Protocol

import torch

from benchmarks.ops.compare import WrongResultError
from benchmarks.ops.hot_buffers import stamps
from benchmarks.ops.ours import triton_op
from benchmarks.select.rows import BLOCK_TOKENS, Rows
from benchmarks.select.window import Window
from hisparse_kernels.refine_logits import HostBlocks
from hisparse_kernels.resolve import MissPlan, SlotState
from hisparse_kernels.window_slots import WindowSlots


class Residency(Protocol):
    """What a selection asks for.

    Attributes:
        window_pages: [slots * 2, page_bytes] uint8, what the slots hold.
    """

    window_pages: torch.Tensor

    @property
    def host(self) -> HostBlocks | None:
        """Where blocks without a slot are read from; None = all get one."""

    @property
    def window_slots(self) -> WindowSlots | None:
        """Where slots are looked up as blocks are chosen; None = `slots` finds them."""

    def slots(self, block_ids: torch.Tensor) -> torch.Tensor:
        """[rows, m] int32 slots of the blocks just chosen; -1 = none."""

    def check_before(self, block_ids: torch.Tensor) -> None:
        """Raises unless as many of the blocks are missing as is said, before the first call."""

    def reset(self) -> None:
        """Back to before the first call."""


class InOrder:
    """One sequence's blocks in the order of their ids, as a prefill has them: no look-up."""

    host = None
    window_slots = None

    def __init__(self, rows: Rows) -> None:
        self.window_pages = rows.index_pages

    def slots(self, block_ids: torch.Tensor) -> torch.Tensor:
        return block_ids

    def check_before(self, block_ids: torch.Tensor) -> None:
        """Nothing can be missing."""

    def reset(self) -> None:
        """Nothing changes."""


class LookedUp:
    """Slots from the window's table as it is; what is missing is read from the host in place."""

    def __init__(self, rows: Rows, kept: int, window: Window) -> None:
        self.window_pages, self._window, self._row_seq = window.pages, window, rows.row_seq
        self.host = None
        if window.misses:
            self.host = HostBlocks(window.host_pages, window.host_table, rows.row_seq)
        ranges = window.ranges
        table = window.state.slot_table, ranges.table_base, ranges.slot_base
        self.window_slots = WindowSlots(*table, _ids(rows.num_rows, kept))

    def slots(self, block_ids: torch.Tensor) -> torch.Tensor:
        del block_ids  # they were looked up as they were chosen
        return self.window_slots.out

    def check_before(self, block_ids: torch.Tensor) -> None:
        _check_misses(self._window, self._row_seq, block_ids)

    def reset(self) -> None:
        """Nothing changes."""


class Fetched:
    """Slots from a resolve, and what it misses copied into them before it is used."""

    host = None
    window_slots = None

    def __init__(self, rows: Rows, kept: int, window: Window) -> None:
        self.window_pages, self._window, self._row_seq = window.pages, window, rows.row_seq
        self._resolve, self._fetch = triton_op("resolve"), triton_op("swap_in_blocks")
        self._stamps = stamps(1)
        sequences = rows.num_sequences
        self._plan = MissPlan(
            *(_ids(sequences, kept) for _ in range(2)), *(_ids(sequences) for _ in range(2))
        )
        self._slots = _ids(rows.num_rows, kept)
        self._saved = {one.name: getattr(window.state, one.name).clone() for one in _STATE}

    def slots(self, block_ids: torch.Tensor) -> torch.Tensor:
        window = self._window
        held = window.state, window.ranges, self._stamps, self._plan, self._slots
        self._resolve(block_ids, self._row_seq, *held)
        where = window.host_pages, window.host_table, self._plan, self.window_pages
        self._fetch(*where, BLOCK_TOKENS)
        return self._slots

    def check_before(self, block_ids: torch.Tensor) -> None:
        _check_misses(self._window, self._row_seq, block_ids)

    def reset(self) -> None:
        for name, saved in self._saved.items():
            getattr(self._window.state, name).copy_(saved)


_STATE = fields(SlotState)


def _check_misses(window: Window, row_seq: torch.Tensor, block_ids: torch.Tensor) -> None:
    table = window.absolute_table()[row_seq.long()]
    missing = ((table.gather(1, block_ids.clamp(min=0).long()) < 0) & (block_ids >= 0)).sum(1)
    if bool((missing != window.misses).any()):
        found = f"{int(missing.min())} to {int(missing.max())}"
        raise WrongResultError(f"misses: {found} of a row, needs {window.misses}")


def _ids(*shape: int) -> torch.Tensor:
    return torch.full(shape, -1, dtype=torch.int32, device="cuda")
