"""One step: which rows of which sequences, as the tensors that every layer of the step shares."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import MissPlan, SlotRanges
from hisparse_sidecar._core import SequenceRanges
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import WrongState

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
    host_pages: list[int]
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
        new_slots: [rows, 1] int32, slots of the step's own rows; None in a prefill chunk.
        topk_indices: [rows, topk] int32, token positions.
        slots: [rows, topk] int32, their slots; None in a prefill chunk.
        plan: the rows to swap in, the same for every layer of the group.
    """

    new_slots: torch.Tensor | None = None
    topk_indices: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    plan: MissPlan | None = None


@dataclass
class Step:
    """Rows of a step, packed sequence after sequence, then padding rows.

    Attributes:
        kind: "decode" goes through hot buffer and window, "prefill" streams.
        number: counts the sidecar's steps from 1; gives the LRU stamps.
        sequences: in row order.
        row_seq: [rows] int32, index into `sequences`; -1 = padding row.
        row_pos: [rows] int32, token position; -1 = padding row.
        page_table: [sequences, max_pages] int32, host pages; -1 beyond the end.
        host_row_ids: [rows] int64, row of the host pool for each new row; -1 = padding row.
        pooled_table: [sequences, max_pooled_pages] int32, device pages of the pooled keys.
        hot_ranges, window_ranges: slots and tables of the sequences.
        pooled_base, state_rows: [sequences] int64.
        select_stamps: [2] int32, `claim_stamp` twice: for what the step appends and selects.
        stream_stamps: [2] int32, `stream_stamp` and `claim_stamp`: for what streams through.
        groups: for each anchor group, what its anchor left.
        layers_done: layers that ran.
    """

    kind: StepKind
    number: int
    sequences: tuple[StepSequence, ...]
    row_seq: torch.Tensor
    row_pos: torch.Tensor
    page_table: torch.Tensor
    host_row_ids: torch.Tensor
    pooled_table: torch.Tensor
    hot_ranges: SlotRanges
    window_ranges: SlotRanges
    pooled_base: torch.Tensor
    state_rows: torch.Tensor
    select_stamps: torch.Tensor
    stream_stamps: torch.Tensor
    groups: list[GroupStep]
    layers_done: set[int] = field(default_factory=set)

    @property
    def num_rows(self) -> int:
        """Rows, padding included."""
        return self.row_seq.numel()

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
        """An empty plan with room for every hot slot of a sequence."""
        return self._plan([sequence.ranges.slot_count for sequence in self.sequences])

    def window_plan(self) -> MissPlan:
        """An empty plan with room for every window slot of a sequence."""
        return self._plan([sequence.ranges.window_count for sequence in self.sequences])

    def _plan(self, slot_counts: list[int]) -> MissPlan:
        count, room, device = len(slot_counts), max(slot_counts, default=0), self.row_seq.device

        def empty(*shape: int) -> torch.Tensor:
            return torch.full(shape, -1, dtype=torch.int32, device=device)

        return MissPlan(
            miss_item=empty(count, room),
            miss_dst=empty(count, room),
            miss_count=torch.zeros(count, dtype=torch.int32, device=device),
            item_count=torch.zeros(count, dtype=torch.int32, device=device),
        )


def build_step(
    kind: StepKind,
    number: int,
    sequences: Sequence[StepSequence],
    num_groups: int,
    padded_rows: int,
    device: torch.device,
) -> Step:
    """The tensors of a step with `padded_rows` rows, of which the last ones are padding."""
    row_seq, row_pos, host_row_ids = _rows(sequences, padded_rows)
    pooled_pages = [_pooled_pages(sequence.ranges) for sequence in sequences]

    def column(name: str) -> torch.Tensor:
        values = [getattr(sequence.ranges, name) for sequence in sequences]
        return torch.tensor(values, dtype=torch.int64, device=device)

    def stamps(stamp: int, protect_since: int) -> torch.Tensor:
        return torch.tensor([stamp, protect_since], dtype=torch.int32, device=device)

    return Step(
        kind=kind,
        number=number,
        sequences=tuple(sequences),
        row_seq=torch.tensor(row_seq, dtype=torch.int32, device=device),
        row_pos=torch.tensor(row_pos, dtype=torch.int32, device=device),
        page_table=_stack([sequence.host_pages for sequence in sequences], device),
        host_row_ids=torch.tensor(host_row_ids, dtype=torch.int64, device=device),
        pooled_table=_stack(pooled_pages, device),
        hot_ranges=SlotRanges(
            column("slot_base"), column("slot_count"), column("token_table_base")
        ),
        window_ranges=SlotRanges(
            column("window_base"), column("window_count"), column("block_table_base")
        ),
        pooled_base=column("pooled_base"),
        state_rows=column("state_row"),
        select_stamps=stamps(claim_stamp(number), claim_stamp(number)),
        stream_stamps=stamps(stream_stamp(number), claim_stamp(number)),
        groups=[GroupStep() for _ in range(num_groups)],
    )


def _rows(
    sequences: Sequence[StepSequence], padded_rows: int
) -> tuple[list[int], list[int], list[int]]:
    row_seq, row_pos, host_row_ids = [], [], []
    for number, sequence in enumerate(sequences):
        for position in range(sequence.start, sequence.length):
            page = sequence.host_pages[position // PAGE_TOKENS]
            row_seq.append(number)
            row_pos.append(position)
            host_row_ids.append(page * PAGE_TOKENS + position % PAGE_TOKENS)
    padding = [-1] * (padded_rows - len(row_seq))
    return row_seq + padding, row_pos + padding, host_row_ids + padding


def _pooled_pages(ranges: SequenceRanges) -> list[int]:
    first = ranges.pooled_base // PAGE_TOKENS
    return list(range(first, first + ranges.pooled_count // PAGE_TOKENS))


def _stack(lists: list[list[int]], device: torch.device) -> torch.Tensor:
    width = max((len(values) for values in lists), default=0)
    padded = [values + [-1] * (width - len(values)) for values in lists]
    return torch.tensor(padded, dtype=torch.int32, device=device).view(len(lists), width)
