"""The lists of one run as rows of the cache: given as such, or found by positions."""

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.paged_batch import PagedBatch
from hisparse_sidecar.attention.inputs import PagedRows
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.requirements import require
from hisparse_sidecar.tensor_checks import check_tensor

Lists = tuple[torch.Tensor, torch.Tensor | None]


def require_one_list(
    topk_indices: torch.Tensor | None, row_ids: torch.Tensor | None, index_q: torch.Tensor | None
) -> None:
    """Raises InvalidArgument unless a run has lists of one kind."""
    number = sum(one is not None for one in (topk_indices, row_ids, index_q))
    message = f"run has {number} of topk_indices, row_ids and index_q, needs one"
    require(number == 1, message)


def given_lists(
    query: torch.Tensor, row_ids: torch.Tensor | None, valid_counts: torch.Tensor | None
) -> Lists:
    """Row ids [rows, any], and how many of each row count; None = all.

    Raises:
        InvalidArgument: they do not fit the query.
    """
    assert row_ids is not None
    _check("row_ids", row_ids, valid_counts, len(query), query.device)
    return row_ids, valid_counts


def located_lists(
    ops: Ops,
    batch: PagedBatch | None,
    cache: PagedRows,
    rows: int,
    topk_indices: torch.Tensor,
    valid_counts: torch.Tensor | None,
) -> Lists:
    """Row ids [rows, any] of token positions.

    Raises:
        InvalidArgument: the positions do not fit the query, or the plan had no metadata.
    """
    _check("topk_indices", topk_indices, valid_counts, rows, cache.rows.device)
    if batch is None:
        raise InvalidArgument("the plan has no metadata, topk_indices need it: or give row_ids")
    where = batch, cache.num_pages, cache.page_stride
    return ops.locate_rows(topk_indices, *where, valid_counts), None


def _check(
    name: str,
    lists: torch.Tensor,
    valid_counts: torch.Tensor | None,
    rows: int,
    device: torch.device,
) -> None:
    check_tensor(name, lists, (rows, -1), torch.int32, device=device)
    require(lists.shape[1] >= 1, f"{name} has {lists.shape[1]} columns, needs >= 1")
    if valid_counts is not None:
        check_tensor("valid_counts", valid_counts, (rows,), torch.int32, device=device)
