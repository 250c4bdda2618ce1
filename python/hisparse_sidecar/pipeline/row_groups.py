"""A decode step's rows in groups: one is attended to while what the next selected comes in."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hisparse_kernels.resolve import MissPlan
from hisparse_kernels.swap_in import FreshRows
from hisparse_sidecar.side_stream import StreamMark


@dataclass(frozen=True)
class RowGroup:
    """Rows of a step, and the place in a stream behind which all that they selected is there."""

    rows: slice
    ready: StreamMark


def row_groups(num_rows: int, num_sequences: int, group_rows: int) -> Iterator[tuple[slice, slice]]:
    """Rows of each group, and the sequences whose rows come in for it.

    A sequence's number is no larger than that of any row of it, for every sequence has a row: so
    the sequences of the first n rows are among the first n, and both are cut at the same places.

    Args:
        num_rows: of the step, padding included.
        num_sequences: of its tables, blanks included.
        group_rows: rows of a group; 0 = all are one group.
    """
    size = group_rows or max(num_rows, 1)
    for start in range(0, max(num_rows, 1), size):
        is_last = start + size >= num_rows
        sequences = slice(start, num_sequences if is_last else start + size)
        yield slice(start, min(start + size, num_rows)), sequences


def plan_of(plan: MissPlan, sequences: slice) -> MissPlan:
    """The part of a plan that is about some sequences, in place."""
    return MissPlan(
        plan.miss_item[sequences],
        plan.miss_dst[sequences],
        plan.miss_count[sequences],
        plan.item_count[sequences],
    )


def fresh_of(fresh: FreshRows, sequences: slice) -> FreshRows:
    """The same of fresh rows: `rows` stay whole."""
    missed = fresh.num_missed
    return replace(
        fresh,
        first_item=fresh.first_item[sequences],
        first_row=fresh.first_row[sequences],
        num_missed=None if missed is None else missed[sequences],
    )
