"""One step: which rows of which sequences, as the tensors that every layer of the step shares."""

from dataclasses import dataclass, field
from typing import Literal

import torch

from hisparse_kernels.resolve import MissPlan, SlotRanges
from hisparse_sidecar._core import SequenceRanges
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.step.frame import StepFrame
from hisparse_sidecar.step.watch import StepWatch

StepKind = Literal["decode", "prefill"]

MAX_STEPS = 2**30 - 2  # stamps up to 2 * step + 1 are int32


def claim_stamp(step: int) -> int:
    """LRU stamp of what a step appends and selects; such slots are not evicted in it."""
    return 2 * step + 1


def stream_stamp(step: int) -> int:
    """LRU stamp of what merely streams through in a step."""
    return 2 * step


@dataclass(frozen=True)
class StepSequence:
    """One sequence in a step: rows `start .. start + num_rows - 1` of it are new."""

    handle: int
    start: int
    num_rows: int
    ranges: SequenceRanges
    selection: SelectionConfig

    @property
    def length(self) -> int:
        """Tokens, the new ones included."""
        return self.start + self.num_rows


@dataclass
class GroupStep:
    """What an anchor layer leaves for the layers that share its selection.

    Attributes:
        topk_indices: [rows, topk] int32, token positions.
        slots: [rows, topk] int32, their slots; None in a prefill chunk.
        plan: the rows to swap in, the same for every layer of the group.
        warm_plans: of a prefill chunk, what its last rows leave in the hot buffers, row after row.
    """

    topk_indices: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    plan: MissPlan | None = None
    warm_plans: tuple[MissPlan, ...] | None = None


@dataclass
class Step:
    """Rows of a step, packed sequence after sequence, then padding rows.

    Attributes:
        kind: "decode" goes through hot buffer and window, "prefill" streams.
        number: counts the sidecar's steps from 1; gives the LRU stamps.
        sequences: in row order.
        row_seq: [rows] int32, index into `sequences`; -1 = padding row.
        row_pos: [rows] int32, token position; -1 = padding row.
        row_block, row_end: [rows] int32, block of that position (-1 = padding row); 1 more than it.
        page_table: [sequences, max_pages] int32, host pages; -1 beyond the end.
        host_row_ids: [rows] int64, row of the host pool for each new row; -1 = padding row.
        spill_row_ids: [rows] int64, the same, but -1 where another rank writes it.
        begins_blocks: whether a row is, or in a frame may be, the first of its block.
        num_spilled_rows, num_spilled_blocks: rows and pooled keys that this rank writes, a layer.
        pooled_table: [sequences, max_pooled_pages] int32, device pages of the pooled keys.
        hot_ranges, window_ranges: slots and tables of the sequences.
        pooled_base, state_rows: [sequences] int64.
        select_stamps: [2] int32, `claim_stamp` twice: for what the step appends and selects.
        stream_stamps: [2] int32, `stream_stamp` and `claim_stamp`: for what streams through.
        lengths: [sequences] int32, tokens, the new ones included.
        first_pos, first_row: [sequences] int32, the first new position, and its row of the step.
        closed_rows: [closed] int64, rows of the pooled keys of the blocks that the step fills.
        closed_pages: [closed] int64, host page of each; -1 = another rank writes it.
        selections: how rows select, and [rows] bool, which rows do; True only for real rows.
        groups: for each anchor group, what its anchor left.
        layers_done: layers that ran.
        watch: what is looked at when the step ends.
        frame: where the tables lie, and what lists are sized for; None = by this step.
        held: tensors that work beside the layers uses; they live as long as the step.
    """

    kind: StepKind
    number: int
    sequences: tuple[StepSequence, ...]
    row_seq: torch.Tensor
    row_pos: torch.Tensor
    row_block: torch.Tensor
    row_end: torch.Tensor
    page_table: torch.Tensor
    host_row_ids: torch.Tensor
    spill_row_ids: torch.Tensor
    begins_blocks: bool
    num_spilled_rows: int
    num_spilled_blocks: int
    pooled_table: torch.Tensor
    hot_ranges: SlotRanges
    window_ranges: SlotRanges
    pooled_base: torch.Tensor
    state_rows: torch.Tensor
    select_stamps: torch.Tensor
    stream_stamps: torch.Tensor
    lengths: torch.Tensor
    first_pos: torch.Tensor
    first_row: torch.Tensor
    closed_rows: torch.Tensor
    closed_pages: torch.Tensor
    selections: tuple[tuple[SelectionConfig, torch.Tensor], ...]
    groups: list[GroupStep]
    layers_done: set[int] = field(default_factory=set)
    watch: StepWatch = field(default_factory=StepWatch)
    frame: StepFrame | None = None
    held: list[torch.Tensor] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        """Rows, padding included."""
        return self.row_seq.numel()

    @property
    def num_sequences(self) -> int:
        """Entries of tables of sequences; in a frame, also those of none."""
        return self.lengths.numel()

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest sequence; in a frame, of the longest that it holds."""
        if self.frame is not None:
            return self.frame.max_tokens
        return max((sequence.length for sequence in self.sequences), default=0)

    def row_range(self, position: int) -> slice:
        """Rows of `sequences[position]`."""
        start = sum(sequence.num_rows for sequence in self.sequences[:position])
        return slice(start, start + self.sequences[position].num_rows)

    def enter_layer(self, layer: int, anchor: int) -> None:
        """Raises WrongState unless `layer` has not run and its anchor has."""
        if layer in self.layers_done:
            raise WrongState(f"layer {layer} ran already in step {self.number}")
        if layer != anchor and anchor not in self.layers_done:
            raise WrongState(
                f"layer {layer} needs the selection of layer {anchor}, which has not run"
            )

    def hot_plan(self) -> MissPlan:
        """A plan to be written, with room for every hot slot of a sequence."""
        if self.frame is not None:
            return self._plan(self.frame.hot_slots)
        return self._plan(max((one.ranges.slot_count for one in self.sequences), default=0))

    def window_plan(self) -> MissPlan:
        """A plan to be written, with room for every window slot of a sequence."""
        if self.frame is not None:
            return self._plan(self.frame.window_slots)
        return self._plan(max((one.ranges.window_count for one in self.sequences), default=0))

    def _plan(self, room: int) -> MissPlan:
        count, device = self.num_sequences, self.row_seq.device

        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.int32, device=device)

        return MissPlan(
            miss_item=empty(count, room),
            miss_dst=empty(count, room),
            miss_count=empty(count),
            item_count=empty(count),
        )
