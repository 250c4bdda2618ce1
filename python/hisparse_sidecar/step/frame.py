"""A frame: places for the tables of decode steps, which never move, as a captured graph needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.config import SelectionConfig, SidecarConfig
from hisparse_sidecar.requirements import require

if TYPE_CHECKING:
    from hisparse_sidecar.step.step import StepSequence

_ALIGN_BYTES = 16  # kernels are specialised by what their pointers are multiples of
_RANGES = (
    "slot_base",
    "slot_count",
    "token_table_base",
    "window_base",
    "window_count",
    "block_table_base",
    "pooled_base",
    "state_row",
)


@dataclass(frozen=True)
class _Table:
    """Of `shape`; what a step does not fill holds `blank`: no row, no page, an empty range."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    blank: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class StepFrame:
    """Decode steps of up to so many rows and sequences, whose tables lie in the same places.

    Whatever depends on the host's numbers in a step depends on the frame's here: lists are as long
    as `max_tokens` need, plans as the largest hot buffer does, and how blocks outside a window
    are read is decided once. Bits are those of a step without a frame.

    Attributes:
        rows: of every step, padding included.
        sequences: most of a step.
        max_tokens: most of a sequence, the new ones included.
        selection: of every sequence in it.
        hot_slots, window_slots: of a sequence by the config: most hot slots, and the window slots
            that it has, or at least, where its window holds every block, those that it needs.
        is_resident: whether such a window holds every block of `max_tokens`.
        tables: the places by name, as `Step` has them; device memory.
    """

    def __init__(
        self,
        config: SidecarConfig,
        selection: SelectionConfig,
        device: torch.device,
        rows: int,
        sequences: int,
        max_tokens: int,
    ) -> None:
        """Allocates; nothing after it does.

        Raises:
            InvalidArgument: a size is less than 1, or the selection is one that a graph cannot
                hold: given positions, which are looked at when they come, or audits, which depend
                on the step's number.
        """
        for name, found in (("rows", rows), ("sequences", sequences), ("max_tokens", max_tokens)):
            require(found >= 1, f"{name} of a frame is {found}, must be >= 1")
        source = selection.index_source
        require(source != "given", f"index_source is {source}, a frame needs one that selects")
        self.rows, self.sequences, self.max_tokens = rows, sequences, max_tokens
        self.selection, self._block_tokens = selection, config.block_tokens
        self._touched = config.touched_blocks
        self.hot_slots = config.default_hot_slots
        self.window_slots = config.window_blocks + config.touched_blocks
        self._step_rows = config.max_step_rows
        self.is_resident = self._blocks_of(max_tokens) + self._touched <= self.window_slots
        shapes = _tables(rows, sequences, max_tokens, config.block_tokens)
        self._starts, total = {}, 0
        for name, table in shapes.items():
            self._starts[name] = total
            total += -(-table.num_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
        self._shapes, self._content = shapes, torch.empty(total, dtype=torch.uint8, device=device)
        self._blank = torch.empty(total, dtype=torch.uint8)
        self.tables = self._views(self._content)
        for name, view in self._views(self._blank).items():
            view.fill_(shapes[name].blank)
        self._content.copy_(self._blank)

    def check(self, members: Sequence["StepSequence"]) -> None:
        """Raises InvalidArgument unless a step of these sequences fits."""
        rows = sum(member.num_rows for member in members)
        require(rows <= self.rows, f"the step has {rows} rows, its frame holds {self.rows}")
        count, most = len(members), self.sequences
        require(count <= most, f"the step has {count} sequences, its frame holds {most}")
        for member in members:
            who, ranges = f"sequence {member.handle}", member.ranges
            message = f"{who} has {member.length} tokens, the frame holds {self.max_tokens}"
            require(member.length <= self.max_tokens, message)
            message = f"{who} has {ranges.slot_count} hot slots, the frame holds {self.hot_slots}"
            require(ranges.slot_count <= self.hot_slots, message)
            needed, found = self._window_slots_of(member), ranges.window_count
            require(needed <= found, f"{who} needs {needed} window slots, has {found}")
            message = f"{who} has {found} window slots, the frame holds {self.window_slots}"
            require(found <= self.window_slots, message)
            message = f"{who} selects by {member.selection}, its frame by {self.selection}"
            require(member.selection == self.selection, message)

    def _window_slots_of(self, member: "StepSequence") -> int:
        if not self.is_resident:
            return self.window_slots
        return self._blocks_of(member.length) + self._touched

    def _blocks_of(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)

    def fits(self, num_scored: int) -> bool:
        """Whether a window holds what the rows of a sequence may score and its new rows touch."""
        most = min(self._step_rows * num_scored, self._blocks_of(self.max_tokens))
        return most + self._touched <= self.window_slots

    def put(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Writes the tables of a step, in one copy that the host does not wait for.

        Args:
            tensors: on the CPU, one for each table, no larger than it in any dimension.

        Returns:
            `tables`.
        """
        pinned = self._content.is_cuda
        staged = torch.empty(self._blank.shape, dtype=torch.uint8, pin_memory=pinned)
        staged.copy_(self._blank)
        for name, view in self._views(staged).items():
            given = tensors[name]
            view[tuple(slice(size) for size in given.shape)] = given
        self._content.copy_(staged, non_blocking=True)
        return dict(self.tables)

    def _views(self, content: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {}
        for name, table in self._shapes.items():
            start = self._starts[name]
            flat = content[start : start + table.num_bytes].view(table.dtype)
            found[name] = flat.view(table.shape)
        return found


def _tables(rows: int, sequences: int, max_tokens: int, block_tokens: int) -> dict[str, _Table]:
    int32, int64 = torch.int32, torch.int64
    pages = -(-max_tokens // PAGE_TOKENS)
    pooled_pages = -(-max_tokens // (block_tokens * PAGE_TOKENS))
    of_rows = {name: _Table((rows,), int32, -1) for name in ("row_seq", "row_pos", "row_block")}
    of_rows["row_end"] = _Table((rows,), int32, 0)
    for name in ("host_row_ids", "spill_row_ids"):
        of_rows[name] = _Table((rows,), int64, -1)
    of_sequences = {
        "page_table": _Table((sequences, pages), int32, -1),
        "pooled_table": _Table((sequences, pooled_pages), int32, -1),
        **{name: _Table((sequences,), int64, 0) for name in _RANGES},
        **{name: _Table((sequences,), int32, 0) for name in ("lengths", "first_pos", "first_row")},
    }
    of_step = {
        "select_stamps": _Table((2,), int32, 0),
        "stream_stamps": _Table((2,), int32, 0),
        "row_selection": _Table((1, rows), torch.bool, 0),
    }
    return of_rows | of_sequences | of_step
