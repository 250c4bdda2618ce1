"""The tensors of one run as the ops take them: one query, one array of rows, places for results."""

from dataclasses import dataclass

import torch

from hisparse_kernels.sparse_mla import ROW_ALIGN
from hisparse_sidecar.attention.contract import PlanContract
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.requirements import require
from hisparse_sidecar.tensor_checks import check_tensor

Tensors = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class PagedRows:
    """A KV cache as an array of rows.

    Attributes:
        rows: [N, row_bytes] uint8, a view of the cache.
        num_pages: pages of the cache.
        page_stride: rows from one page to the next; more than a page has where others lie between.
    """

    rows: torch.Tensor
    num_pages: int
    page_stride: int


def one_of(
    name: str, whole: Tensors | None, names: tuple[str, str], *parts: torch.Tensor | None
) -> Tensors:
    """`whole`, or the two `parts` that stand for it.

    Raises:
        InvalidArgument: neither or both were given, or one part.
    """
    found = [one for one, part in zip(names, parts, strict=True) if part is not None]
    both = " and ".join(names)
    if whole is not None:
        require(not found, f"run has {name} and {', '.join(found)}, needs one form")
        return whole
    require(len(found) == 2, f"run has {found or 'no ' + name}, needs {name}, or {both}")
    first, second = parts
    assert first is not None
    assert second is not None
    return first, second


def packed_query(contract: PlanContract, query: Tensors, device: torch.device) -> torch.Tensor:
    """[rows, heads, query_dim]; a pair that does not lie side by side is copied together.

    Raises:
        InvalidArgument: it is neither a tensor nor a pair of them, or a dtype, a shape or a device
            is not the planned one.
    """
    _check_form("query", query)
    widths = contract.head_dim_ckv, contract.head_dim_kpe
    if isinstance(query, tuple):
        _check_pair("query", query, widths)
        query = side_by_side(*query) if widths[1] else query[0]
        if isinstance(query, tuple):
            query = torch.cat(query, dim=-1)
    shape = -1, contract.num_heads, contract.query_dim
    check_tensor("query", query, shape, contract.q_data_type, device=device)
    return query


def paged_rows(contract: PlanContract, kv_cache: Tensors, device: torch.device) -> PagedRows:
    """The cache as rows, without a copy.

    Raises:
        InvalidArgument: it is neither a tensor nor a pair of them, a dtype or a shape is not the
            planned one, or the rows do not lie as the ops need them; says which.
    """
    _check_form("kv_cache", kv_cache)
    layout = contract.layout
    if isinstance(kv_cache, tuple):
        _check_pair("kv_cache", kv_cache, (contract.head_dim_ckv, contract.head_dim_kpe))
        joined = side_by_side(*kv_cache)
        if isinstance(joined, tuple):
            how = "needs both as views of one [pages, page_size, 576] tensor: its [..., :512]"
            raise InvalidArgument(f"ckv_cache and kpe_cache lie apart, {how} and [..., 512:]")
        kv_cache = joined
    width = layout.row_bytes // contract.kv_data_type.itemsize
    shape = -1, contract.page_size, width
    check_tensor("kv_cache", kv_cache, shape, contract.kv_data_type, device=device)
    between_pages, between_rows, within = _strides(kv_cache)
    row_stride = between_rows * kv_cache.element_size()
    has_rows = row_stride > 0 and row_stride % ROW_ALIGN == 0
    if within != 1 or not has_rows or between_pages % between_rows:
        apart = f"a multiple of {ROW_ALIGN} B, at least one, apart"
        needed = f"values side by side, rows {apart}, pages whole rows"
        raise InvalidArgument(f"kv_cache has strides {kv_cache.stride()}, needs {needed}")
    num_pages, page_stride = len(kv_cache), between_pages // between_rows
    needed = f"pages at least {contract.page_size} rows apart"
    require(page_stride >= contract.page_size, f"kv_cache has {page_stride}, needs {needed}")
    numbers = num_pages * page_stride
    require(numbers <= 2**31, f"kv_cache spans {numbers} rows, at most 2**31 have ids")
    num_rows = (num_pages - 1) * page_stride + contract.page_size if num_pages else 0
    rows = kv_cache.as_strided((num_rows, width), (between_rows, 1)).view(torch.uint8)
    return PagedRows(rows, num_pages, page_stride)


def _strides(kv_cache: torch.Tensor) -> tuple[int, int, int]:
    """Of the three dimensions; where one is of size 1 its stride says nothing."""
    between_pages, between_rows, within = kv_cache.stride()
    if kv_cache.shape[1] == 1:
        between_rows = between_pages if len(kv_cache) > 1 else kv_cache.shape[2]
    if len(kv_cache) <= 1:
        between_pages = between_rows * kv_cache.shape[1]
    return between_pages, between_rows, within


def side_by_side(first: torch.Tensor, second: torch.Tensor) -> Tensors:
    """One view of both where they are parts of one tensor's last dimension; else the pair."""
    width = first.shape[-1]
    is_adjacent = (
        first.stride() == second.stride()
        and first.stride(-1) == 1
        and second.data_ptr() == first.data_ptr() + width * first.element_size()
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
        and all(stride >= width + second.shape[-1] for stride in first.stride()[:-1])
    )
    if not is_adjacent:
        return first, second
    shape = *first.shape[:-1], width + second.shape[-1]
    return first.as_strided(shape, first.stride())


def _check_form(name: str, given: object) -> None:
    """Raises InvalidArgument unless it is a tensor, or a pair of them."""
    if isinstance(given, torch.Tensor):
        return
    needed = "needs a tensor, or a tuple of two"
    if not isinstance(given, tuple):
        raise InvalidArgument(f"{name} is a {type(given).__name__}, {needed}")
    kinds = ", ".join(type(part).__name__ for part in given)
    is_pair = len(given) == 2 and all(isinstance(part, torch.Tensor) for part in given)
    require(is_pair, f"{name} is a tuple of {len(given)} ({kinds}), {needed}")


def _check_pair(
    name: str, pair: tuple[torch.Tensor, torch.Tensor], widths: tuple[int, int]
) -> None:
    first, second = pair
    found = tuple(first.shape), tuple(second.shape)
    message = f"{name} is a pair of shapes {found[0]} and {found[1]}, needs widths {widths}"
    fits = found[0][:-1] == found[1][:-1] and (found[0][-1:], found[1][-1:]) == (
        widths[:1],
        widths[1:],
    )
    require(fits, message)
    message = f"{name} is a pair of {first.dtype} and {second.dtype}, needs one dtype"
    require(first.dtype == second.dtype, message)
    message = f"{name} is a pair on {first.device} and {second.device}, needs one device"
    require(first.device == second.device, message)
