"""Which rows are also scored flat, and how much of what flat selects was selected."""

from collections.abc import Iterator

import torch

from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.selection.contract import IndexKeys, SelectionQuery
from hisparse_sidecar.selection.flat import FlatSelector
from hisparse_sidecar.selection.row_groups import select_in_groups
from hisparse_sidecar.step.step import Step

_NO_POSITION = torch.iinfo(torch.int32).max


def audited_rows(step: Step, asked: SelectionConfig, one_in: int) -> Iterator[range]:
    """Rows to audit of each sequence that asked for a selection: the host knows them.

    Row r of step n is due where n + r is a multiple of `one_in`, so each row of a batch comes once
    in so many steps; 0 = never.
    """
    start = 0
    for sequence in step.sequences:
        stop = start + sequence.num_rows
        if one_in and sequence.selection == asked:
            due = range(start + -(step.number + start) % one_in, stop, one_in)
            if due:
                yield due
        start = stop


def audit(
    query: SelectionQuery,
    keys: IndexKeys,
    rows: range,
    selected: torch.Tensor,
    most_bytes: int,
) -> None:
    """Scores rows of one sequence flat and counts what was found, or that they were skipped.

    Args:
        query: all rows.
        keys: index keys; they must be resident to be read.
        rows: which rows.
        selected: [all rows, topk] int32, what is audited.
        most_bytes: bound on the logits.
    """
    if not keys.is_resident(rows[0]):
        keys.count("skipped_audits", len(rows))
        return
    some = slice(rows.start, rows.stop, rows.step)
    audited = query.rows(some).contiguous()
    wanted = select_in_groups(FlatSelector(), audited, keys, most_bytes)
    is_token = wanted >= 0
    keys.count("audited_rows", is_token.any(1))
    keys.count("audited_tokens", is_token.sum(1))
    keys.count("found_tokens", is_found(wanted, selected[some]).sum(1))


def is_found(wanted: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
    """[rows, k] bool, which of `wanted` their row of `selected` has; both as `topk_indices`."""
    selected = selected.masked_fill(selected < 0, _NO_POSITION).contiguous()
    place = torch.searchsorted(selected, wanted.contiguous()).clamp(max=selected.shape[1] - 1)
    return (selected.gather(1, place) == wanted) & (wanted >= 0)
