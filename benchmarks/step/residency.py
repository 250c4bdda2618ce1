"""Full hot buffers before a step: of its rows some are missing; the others fill the rest."""

from dataclasses import dataclass

import torch

from hisparse_kernels.resolve import SlotRanges, SlotState


@dataclass(frozen=True)
class Wanted:
    """What the rows of a step select, one row for each sequence.

    Attributes:
        positions: [sequences, topk] int32, ascending; none is -1.
        start: position of the sequences' new rows, which has no slot yet.
        misses: of the others, how many have no slot.
    """

    positions: torch.Tensor
    start: int
    misses: int


def fill_slots(state: SlotState, ranges: SlotRanges, slots: int, wanted: Wanted, now: int) -> None:
    """Gives every slot of the sequences an item, in random order.

    The missing positions are drawn for each sequence alone. What the step will not ask for was used
    longer ago than what it will.

    Args:
        state: changed in place; table entries of positions up to `start` are written.
        ranges: of the sequences.
        slots: of each sequence.
        wanted: by the step.
        now: stamp of the step.
    """
    selected = wanted.positions.long()
    sequences, device = len(selected), selected.device
    score = torch.rand(sequences, wanted.start, device=device)
    rank = torch.rand(selected.shape, device=device)
    is_new = selected >= wanted.start
    missing = rank.masked_fill(is_new, 2.0).argsort(1)[:, : wanted.misses]
    kept = ~is_new.scatter(1, missing, True)
    marks = torch.where(kept, 2.0, -1.0).masked_fill(is_new, 0.0)
    score.scatter_add_(1, selected.clamp(max=wanted.start - 1), marks)
    marked, items = score.topk(slots, dim=1)
    order = torch.rand(items.shape, device=device).argsort(1)
    marked, items = marked.gather(1, order), items.gather(1, order)
    where = ranges.slot_base[:, None] + torch.arange(slots, device=device)
    state.slot_item[where] = items.int()
    state.slot_stamp[where] = torch.where(marked >= 2.0, now - 2, now - 3).int()
    table = ranges.table_base[:, None]
    every = table + torch.arange(wanted.start + 1, device=device)
    state.slot_table[every] = -1
    number = torch.arange(slots, device=device).to(state.slot_table.dtype)
    state.slot_table[table + items] = number.expand_as(items)
