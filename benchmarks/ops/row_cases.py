"""Stored rows: pack and unpack them, place index rows in pages, quantise queries."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.compare import check_equal
from benchmarks.ops.count import INDEX_ROW_BYTES, moved_work
from benchmarks.ops.inputs import FP8_ROWS, INDEX, index_keys, index_pages, kv_rows, num_sets
from benchmarks.ops.ours import triton_op
from benchmarks.ops.timing import Timed
from benchmarks.ops.work import Work
from hisparse_kernels.index_rows import (
    pack_index_rows_ref,
    quantize_index_q_ref,
    read_index_rows_ref,
    unpack_index_rows_ref,
    write_index_rows_ref,
)
from hisparse_kernels.kv_rows import pack_kv_rows_ref, unpack_kv_rows_ref
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS

_ROWS = (64, 4096)
_HEADS = 64
_POOL_PAGES = 4096
_Tensors = tuple[torch.Tensor, ...]


def row_cases() -> Iterator[Case]:
    ops = {
        f"pack_kv_rows {{}} rows, {FP8_ROWS.name}": _pack_kv,
        f"unpack_kv_rows {{}} rows, {FP8_ROWS.name}": _unpack_kv,
        "pack_index_rows {} rows": _pack_index,
        "unpack_index_rows {} rows": _unpack_index,
        "write_index_rows {} rows": _write_index,
        "read_index_rows {} rows": _read_index,
        f"quantize_index_q {{}} rows, {_HEADS} heads": _quantize,
    }
    for name, prepare in ops.items():
        for rows in _ROWS:
            yield Case(name.format(rows), partial(prepare, rows))


def _pack_kv(rows: int) -> Prepared:
    work = moved_work(rows, 2 * FP8_ROWS.query_dim, FP8_ROWS.row_bytes)
    values = _bf16_sets(work, rows, FP8_ROWS.query_dim)
    out = torch.empty(rows, FP8_ROWS.row_bytes, dtype=torch.uint8, device="cuda")

    def expected() -> _Tensors:
        return (pack_kv_rows_ref(values[0].cpu(), FP8_ROWS),)

    pack = triton_op("pack_kv_rows")
    return _prepared(work, [partial(pack, one, FP8_ROWS, out) for one in values], (out,), expected)


def _unpack_kv(rows: int) -> Prepared:
    work = moved_work(rows, FP8_ROWS.row_bytes, 4 * FP8_ROWS.query_dim)
    stored = [kv_rows(rows, FP8_ROWS) for _ in range(num_sets(work.device_bytes))]
    out = torch.empty(rows, FP8_ROWS.query_dim, device="cuda")

    def expected() -> _Tensors:
        return (unpack_kv_rows_ref(stored[0].cpu(), FP8_ROWS),)

    unpack = triton_op("unpack_kv_rows")
    calls = [partial(unpack, one, FP8_ROWS, out) for one in stored]
    return _prepared(work, calls, (out,), expected)


def _pack_index(rows: int) -> Prepared:
    work = moved_work(rows, 2 * INDEX_DIM, INDEX_ROW_BYTES)
    keys = _bf16_sets(work, rows, INDEX_DIM)
    out = torch.empty(rows, INDEX_ROW_BYTES, dtype=torch.uint8, device="cuda")

    def expected() -> _Tensors:
        return (pack_index_rows_ref(keys[0].cpu(), INDEX),)

    pack = triton_op("pack_index_rows")
    return _prepared(work, [partial(pack, one, INDEX, out) for one in keys], (out,), expected)


def _unpack_index(rows: int) -> Prepared:
    work = moved_work(rows, INDEX_ROW_BYTES, 4 * INDEX_DIM)
    stored = [index_keys(rows) for _ in range(num_sets(work.device_bytes))]
    out = torch.empty(rows, INDEX_DIM, device="cuda")

    def expected() -> _Tensors:
        return (unpack_index_rows_ref(stored[0].cpu(), INDEX),)

    unpack = triton_op("unpack_index_rows")
    return _prepared(work, [partial(unpack, one, INDEX, out) for one in stored], (out,), expected)


def _write_index(rows: int) -> Prepared:
    work = moved_work(rows, 8, 2 * INDEX_ROW_BYTES)
    pages, stored = index_pages(_POOL_PAGES), index_keys(rows)
    places = [_places(rows) for _ in range(num_sets(work.device_bytes))]
    before = pages.to("cpu", copy=True)

    def expected() -> _Tensors:
        write_index_rows_ref(before, places[0].cpu(), stored.cpu(), INDEX)
        return (before,)

    write = triton_op("write_index_rows")
    calls = [partial(write, pages, one, stored, INDEX) for one in places]
    return _prepared(work, calls, (pages,), expected)


def _read_index(rows: int) -> Prepared:
    work = moved_work(rows, 8, 2 * INDEX_ROW_BYTES)
    pages = index_pages(_POOL_PAGES)
    places = [_places(rows) for _ in range(num_sets(work.device_bytes))]
    out = torch.empty(rows, INDEX_ROW_BYTES, dtype=torch.uint8, device="cuda")

    def expected() -> _Tensors:
        return (read_index_rows_ref(pages.cpu(), places[0].cpu(), INDEX),)

    read = triton_op("read_index_rows")
    calls = [partial(read, pages, one, INDEX, out) for one in places]
    return _prepared(work, calls, (out,), expected)


def _quantize(rows: int) -> Prepared:
    work = moved_work(rows * _HEADS, 2 * INDEX_DIM, INDEX_DIM, 2 * 4)
    queries = _bf16_sets(work, rows, _HEADS, INDEX_DIM)
    weights = torch.randn(rows, _HEADS, device="cuda")
    codes = torch.empty(rows, _HEADS, INDEX_DIM, dtype=torch.float8_e4m3fn, device="cuda")
    out = codes, torch.empty_like(weights)

    def expected() -> _Tensors:
        found, folded = quantize_index_q_ref(queries[0].cpu(), weights.cpu())
        return found.view(torch.uint8), folded

    quantize = triton_op("quantize_index_q")
    calls = [partial(quantize, one, weights, out) for one in queries]
    return _prepared(work, calls, (codes.view(torch.uint8), out[1]), expected)


def _prepared(
    work: Work,
    calls: Sequence[Callable[[], object]],
    written: _Tensors,
    expected: Callable[[], _Tensors],
) -> Prepared:
    """Every bit as the reference gives it on a CPU: on a GPU torch rounds some quotients anew."""

    def check() -> None:
        calls[0]()
        for found, wanted in zip(written, expected(), strict=True):
            check_equal("result", found.cpu(), wanted)

    return Prepared(work, Contender(check, Timed(calls)))


def _bf16_sets(work: Work, *shape: int) -> list[torch.Tensor]:
    sets = num_sets(work.device_bytes)
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(sets)]


def _places(rows: int) -> torch.Tensor:
    """[rows] int64, distinct rows of the pool."""
    return torch.randperm(_POOL_PAGES * PAGE_TOKENS, device="cuda")[:rows]
