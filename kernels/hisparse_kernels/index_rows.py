"""Pack the indexer's keys into index rows, and place those rows in pages of 64 tokens."""

import torch

from hisparse_kernels.e4m3 import E4M3_MAX, from_e4m3, to_e4m3
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS, IndexLayout
from hisparse_kernels.shapes import FLOATS, Shapes, placed

_MIN_AMAX = 1e-10  # keeps the scale of an all-zero key away from zero


def pack_index_rows(
    keys: torch.Tensor, layout: IndexLayout, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Stored index rows of keys; the fp8 scale is max(amax, 1e-10) / 448.

    Args:
        keys: [n, 128] float; must be finite (inf saturates, a NaN spoils its row).
        layout: how a row is stored.
        out: [n, row_bytes] uint8, overwritten; None = allocate it.

    Returns:
        `out`.
    """
    shapes = Shapes(row_bytes=layout.row_bytes)
    shapes.check("keys", keys, f"n {INDEX_DIM}", *FLOATS)
    shapes.check_out(out, "n row_bytes", torch.uint8)
    if keys.is_cuda:
        from hisparse_kernels.gpu.index_rows import pack_index_rows_triton

        return pack_index_rows_triton(keys, layout, out)
    return pack_index_rows_ref(keys, layout, out)


def pack_index_rows_ref(
    keys: torch.Tensor, layout: IndexLayout, out: torch.Tensor | None = None
) -> torch.Tensor:
    if layout.name == "fp32":
        return placed(keys.float().contiguous().view(torch.uint8), out)
    codes, scale = _quantize(keys.float())
    scale = scale.clone(memory_format=torch.contiguous_format)  # of no rows: stride 0 until here
    return placed(torch.cat([codes.view(torch.uint8), scale.view(torch.uint8)], dim=1), out)


def unpack_index_rows(
    rows: torch.Tensor, layout: IndexLayout, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Keys of stored index rows.

    Args:
        rows: [n, row_bytes] uint8.
        layout: how a row is stored.
        out: [n, 128] fp32, overwritten; None = allocate it.

    Returns:
        `out`: code * scale.
    """
    shapes = Shapes(row_bytes=layout.row_bytes)
    shapes.check("rows", rows, "n row_bytes", torch.uint8)
    shapes.check_out(out, f"n {INDEX_DIM}", torch.float32)
    if rows.is_cuda:
        from hisparse_kernels.gpu.index_rows import unpack_index_rows_triton

        return unpack_index_rows_triton(rows, layout, out)
    return unpack_index_rows_ref(rows, layout, out)


def unpack_index_rows_ref(
    rows: torch.Tensor, layout: IndexLayout, out: torch.Tensor | None = None
) -> torch.Tensor:
    keys, scale = split_rows(rows, layout)
    return placed(keys if scale is None else keys * scale[:, None], out)


def write_index_rows(
    index_pages: torch.Tensor, row_ids: torch.Tensor, rows: torch.Tensor, layout: IndexLayout
) -> None:
    """Writes index rows into their pages, in place.

    Args:
        index_pages: [num_pages, page_bytes] uint8, contiguous.
        row_ids: [n] int64, page * 64 + offset, distinct; -1 = skip the row.
        rows: [n, row_bytes] uint8.
        layout: how a row is stored.
    """
    shapes = Shapes(page_bytes=layout.page_bytes, row_bytes=layout.row_bytes)
    shapes.check_packed("index_pages", index_pages, "num_pages page_bytes", torch.uint8)
    shapes.check("row_ids", row_ids, "n", torch.int64)
    shapes.check("rows", rows, "n row_bytes", torch.uint8)
    if index_pages.is_cuda:
        from hisparse_kernels.gpu.index_rows import write_index_rows_triton

        write_index_rows_triton(index_pages, row_ids, rows, layout)
        return
    write_index_rows_ref(index_pages, row_ids, rows, layout)


def write_index_rows_ref(
    index_pages: torch.Tensor, row_ids: torch.Tensor, rows: torch.Tensor, layout: IndexLayout
) -> None:
    kept = row_ids >= 0
    page, offset = row_ids[kept] // PAGE_TOKENS, row_ids[kept] % PAGE_TOKENS
    start = 0
    for part in _page_parts(index_pages, layout):
        end = start + part.shape[2]
        part[page, offset] = rows[kept, start:end]
        start = end


def place_index_rows(
    index_pages: torch.Tensor, row_ids: torch.Tensor, rows: torch.Tensor, layout: IndexLayout
) -> None:
    """Stored index rows into their pages, byte for byte; the inverse of `read_index_rows`.

    Args:
        index_pages: [num_pages, page_bytes] uint8, contiguous, written.
        row_ids: [n] int64, page * 64 + offset, all valid and different.
        rows: [n, row_bytes] uint8.
        layout: how a row is stored.
    """
    page, offset, start = row_ids // PAGE_TOKENS, row_ids % PAGE_TOKENS, 0
    for part in _page_parts(index_pages, layout):
        end = start + part.shape[2]
        part[page, offset] = rows[:, start:end]
        start = end


def read_index_rows(
    index_pages: torch.Tensor,
    row_ids: torch.Tensor,
    layout: IndexLayout,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Index rows out of their pages; the inverse of `write_index_rows`.

    Args:
        index_pages: [num_pages, page_bytes] uint8, contiguous.
        row_ids: [n] int64, page * 64 + offset, all valid.
        layout: how a row is stored.
        out: [n, row_bytes] uint8, overwritten; None = allocate it.

    Returns:
        `out`.
    """
    shapes = Shapes(page_bytes=layout.page_bytes, row_bytes=layout.row_bytes)
    shapes.check_packed("index_pages", index_pages, "num_pages page_bytes", torch.uint8)
    shapes.check("row_ids", row_ids, "n", torch.int64)
    shapes.check_out(out, "n row_bytes", torch.uint8)
    if index_pages.is_cuda:
        from hisparse_kernels.gpu.index_rows import read_index_rows_triton

        return read_index_rows_triton(index_pages, row_ids, layout, out)
    return read_index_rows_ref(index_pages, row_ids, layout, out)


def read_index_rows_ref(
    index_pages: torch.Tensor,
    row_ids: torch.Tensor,
    layout: IndexLayout,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    page, offset = row_ids // PAGE_TOKENS, row_ids % PAGE_TOKENS
    parts = [part[page, offset] for part in _page_parts(index_pages, layout)]
    return placed(torch.cat(parts, dim=1), out)


def quantize_index_q(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 queries whose scales moved into the weights: relu(s * x) = s * relu(x) for s > 0.

    Args:
        index_q: [rows, heads, 128] float.
        index_weights: [rows, heads] fp32.
        out: [rows, heads, 128] e4m3 and [rows, heads] fp32, overwritten; None = allocate them.

    Returns:
        `out`: the codes, and the weights times the queries' scales.
    """
    shapes = Shapes()
    shapes.check("index_q", index_q, f"rows heads {INDEX_DIM}", *FLOATS)
    shapes.check("index_weights", index_weights, "rows heads", torch.float32)
    if out is not None:
        shapes.check_out(out[0], f"rows heads {INDEX_DIM}", torch.float8_e4m3fn)
        shapes.check_out(out[1], "rows heads", torch.float32)
    if index_q.is_cuda:
        from hisparse_kernels.gpu.index_rows import quantize_index_q_triton

        return quantize_index_q_triton(index_q, index_weights, out)
    return quantize_index_q_ref(index_q, index_weights, out)


def quantize_index_q_ref(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scale = _quantize(index_q.float())
    codes_out, weights_out = (None, None) if out is None else out
    return placed(codes, codes_out), placed(index_weights * scale[:, :, 0], weights_out)


def split_rows(rows: torch.Tensor, layout: IndexLayout) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Keys [n, 128] fp32 without their scale, and the scales [n] fp32 (None: all are 1)."""
    if layout.name == "fp32":
        return rows.contiguous().view(torch.float32), None
    return from_e4m3(rows[:, :INDEX_DIM]), rows[:, INDEX_DIM:].contiguous().view(torch.float32)[
        :, 0
    ]


def split_pages(
    pages: torch.Tensor, layout: IndexLayout
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Keys [num_pages * 64, 128] fp32 without their scale, and the scales (None: all are 1)."""
    if layout.name == "fp32":
        return pages.contiguous().view(torch.float32).view(-1, INDEX_DIM), None
    keys = from_e4m3(pages[:, : PAGE_TOKENS * INDEX_DIM])
    scale = pages[:, PAGE_TOKENS * INDEX_DIM :].contiguous().view(torch.float32)
    return keys.view(-1, INDEX_DIM), scale.view(-1)


def _page_parts(index_pages: torch.Tensor, layout: IndexLayout) -> list[torch.Tensor]:
    """Views [num_pages, 64, bytes] of what a page holds of each row: codes, then scales."""
    if layout.name == "fp32":
        return [index_pages.unflatten(1, (PAGE_TOKENS, layout.row_bytes))]
    codes_end = PAGE_TOKENS * INDEX_DIM
    return [
        index_pages[:, :codes_end].unflatten(1, (PAGE_TOKENS, INDEX_DIM)),
        index_pages[:, codes_end:].unflatten(1, (PAGE_TOKENS, layout.row_bytes - INDEX_DIM)),
    ]


def _quantize(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 codes of the last dimension and their fp32 scales (last dimension 1)."""
    scale = values.abs().amax(-1, keepdim=True).clamp(min=_MIN_AMAX) / E4M3_MAX
    return to_e4m3(values / scale), scale
