"""Bound the logits of a selection: rows are taken in groups."""

from collections.abc import Callable
from typing import TypeVar

import torch

from hisparse_sidecar.selection.contract import IndexKeys, SelectionQuery, Selector
from hisparse_sidecar.selection.flat import FlatSelector

_Keys = TypeVar("_Keys", bound=IndexKeys)


def select_in_groups(
    selector: Selector,
    query: SelectionQuery,
    keys: _Keys,
    most_bytes: int,
    select: Callable[[SelectionQuery, _Keys], torch.Tensor] | None = None,
) -> torch.Tensor:
    """`selector.select`, for so many rows at a time that their logits keep to `most_bytes`.

    The logits of tokens count, and those of pooled keys where blocks are chosen; one row is always
    taken, and no rows have no lists. `select` = another method of the selector's, in its place.
    """
    if query.num_rows == 0:
        return query.row_pos.new_empty(0, query.topk)
    if select is None:
        select = selector.select
    columns = selector.scored_blocks(keys.num_blocks) * keys.block_tokens
    if not isinstance(selector, FlatSelector):
        columns += keys.pooled_columns
    room = max(1, most_bytes // max(1, 4 * columns))
    starts = range(0, query.num_rows, room)
    parts = [select(query.rows(slice(at, at + room)), keys) for at in starts]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
