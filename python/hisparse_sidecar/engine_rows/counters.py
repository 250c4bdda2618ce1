"""What decode steps found in the hot buffers: counted on the device, read without a wait."""

from dataclasses import dataclass

import torch

_KINDS = 4  # items, misses, fresh ones among these, and -1 for each refused sequence


@dataclass(frozen=True)
class GroupCounts:
    """Of one group of layers, since the tier was made.

    Attributes:
        items: tokens asked for, distinct ones of each sequence and step.
        misses: of these, not in the hot buffer, and copied from the host: not the step's own.
        refused: sequences of a step that got no slots, which is a bug: admission provides them.
    """

    items: int
    misses: int
    refused: int


class StepCounters:
    """Counts of the running step, into which the ops write, and their sums over all steps.

    What it launches is ordered by the current stream, allocates nothing and does not wait: a graph
    can hold `begin` and `add`.
    """

    def __init__(self, num_groups: int, max_sequences: int, device: torch.device) -> None:
        shape = _KINDS, num_groups, max_sequences
        self._step = torch.zeros(shape, dtype=torch.int32, device=device)
        self._sums = torch.zeros(shape, dtype=torch.int64, device=device)

    def of_plan(self, group: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[rows] int32 each, `miss_count` and `item_count` of a group's miss plan."""
        items, misses = self._step[:2, group, :rows]
        return misses, items

    def num_fresh(self, group: int, rows: int) -> torch.Tensor:
        """[rows] int32: `num_missed` of a group's fresh rows."""
        return self._step[2, group, :rows]

    def begin(self) -> None:
        """Before the first group of a step is resolved."""
        self._step.zero_()

    def add(self) -> None:
        """After the last layer of a step."""
        _, misses, _, refused = self._step
        torch.clamp(misses, max=0, out=refused)  # -1 = refused
        misses.clamp_(min=0)
        self._sums.add_(self._step)

    def read(self) -> tuple[GroupCounts, ...]:
        """The counts of all groups; waits for the device."""
        return counts_of(self._sums.sum(2))

    def begin_reading(self) -> "CounterReading":
        """Launches a transfer of the counts to the host."""
        return CounterReading(self._sums.sum(2))


class CounterReading:
    """Counts on their way to the host."""

    def __init__(self, sums: torch.Tensor) -> None:
        """Launches the transfer of `sums` [4, groups] int64 on the current stream."""
        self._event: torch.cuda.Event | None = None
        self._held = sums
        if sums.is_cuda:
            self._numbers = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
            self._numbers.copy_(sums, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._numbers = sums

    @property
    def is_ready(self) -> bool:
        """Whether they are there; without a wait."""
        return self._event is None or self._event.query()

    def counts(self) -> tuple[GroupCounts, ...]:
        """The counts of all groups, once it is ready."""
        return counts_of(self._numbers)


def counts_of(sums: torch.Tensor) -> tuple[GroupCounts, ...]:
    """Of sums [4, groups] int64 on the host or the device."""
    return tuple(
        GroupCounts(items, misses - fresh, -refused)
        for items, misses, fresh, refused in sums.t().tolist()
    )
