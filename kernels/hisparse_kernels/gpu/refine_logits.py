"""Score the tokens of each row's own blocks: the second half of hierarchical selection."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.overlap import begin_overlapped, overlap_options
from hisparse_kernels.gpu.pipelines import pipeline_of
from hisparse_kernels.gpu.refine_row import refine_row
from hisparse_kernels.gpu.score_keys import (
    BLOCK_KEYS,
    codes_and_scales,
    tile_options,
    tiles_per_program,
)
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout
from hisparse_kernels.refine_logits import HostBlocks

_MIN_PIPELINE_TILES = 32  # of a program: in short runs the loads ahead do not pay


def refine_logits_triton(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_pages: torch.Tensor,
    block_slots: torch.Tensor,
    block_ids: torch.Tensor,
    row_pos: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
    out: torch.Tensor,
    host: HostBlocks | None = None,
) -> torch.Tensor:
    """See `refine_logits`. A program keeps one row and goes over a run of its tiles."""
    refine_into(
        index_q,
        index_weights,
        index_pages,
        block_slots,
        block_ids,
        row_pos,
        block_tokens,
        layout,
        out,
        host,
        write_all=False,
    )
    return out


def refine_into(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_pages: torch.Tensor,
    block_slots: torch.Tensor,
    block_ids: torch.Tensor,
    row_pos: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
    out: torch.Tensor,
    host: HostBlocks | None,
    *,
    write_all: bool,
) -> None:
    """As `refine_logits_triton`; with `write_all` columns of no block become -inf."""
    rows, num_entries = block_slots.shape
    if rows == 0 or num_entries == 0:
        return
    num_tiles = triton.cdiv(num_entries * block_tokens, BLOCK_KEYS)
    tiles = tiles_per_program(rows, num_tiles)
    pipeline = None
    if host is None and tiles >= _MIN_PIPELINE_TILES:
        pipeline = _pipeline_of_pages(index_q, index_pages, block_tokens, layout)
    if pipeline is not None:
        pipeline(
            index_q,
            index_weights,
            index_pages,
            block_slots,
            block_ids,
            row_pos,
            block_tokens,
            layout,
            out,
            write_all=write_all,
        )
        return
    codes, scales = codes_and_scales(index_pages, layout)
    _refine_kernel[rows, triton.cdiv(num_tiles, tiles)](
        index_q.contiguous(),
        index_weights.contiguous(),
        codes,
        scales,
        block_slots.contiguous(),
        block_ids.contiguous(),
        row_pos.contiguous(),
        out,
        num_entries,
        num_tiles,
        tiles,
        *_host_arguments(host, layout),
        WRITE_ALL=write_all,
        PAGES_PER_BLOCK=block_tokens // PAGE_TOKENS,
        **tile_options(index_q, layout),
        **overlap_options(),
    )


def _pipeline_of_pages(
    index_q: torch.Tensor, index_pages: torch.Tensor, block_tokens: int, layout: IndexLayout
) -> Callable[..., torch.Tensor] | None:
    """The Gluon launcher, None where a tile of it is not of one block or cannot be copied."""
    if block_tokens % BLOCK_KEYS or index_pages.data_ptr() % 16:
        return None
    return pipeline_of("refine_logits", index_q, layout)


def _host_arguments(host: HostBlocks | None, layout: IndexLayout) -> tuple[object, ...]:
    """Codes, scales, page table, its columns, pages, sequence of each row; None without a host."""
    if host is None:
        return (None,) * 6
    table, row_seq = host.page_table.contiguous(), host.row_seq.contiguous()
    stored = codes_and_scales(host.pages, layout)
    return *stored, table, table.shape[1], len(host.pages), row_seq


@triton.jit(
    do_not_specialize=[
        "num_entries",
        "num_tiles",
        "tiles_per_program",
        "max_host_pages",
        "num_host_pages",
    ]
)
def _refine_kernel(
    query_ptr,
    weights_ptr,
    codes_ptr,
    scales_ptr,
    slots_ptr,
    ids_ptr,
    pos_ptr,
    out_ptr,
    num_entries,
    num_tiles,
    tiles_per_program,
    host_codes_ptr,
    host_scales_ptr,
    host_table_ptr,
    max_host_pages,
    num_host_pages,
    host_seq_ptr,
    WRITE_ALL: tl.constexpr,
    PAGES_PER_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRODUCT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    begin_overlapped()
    row = tl.program_id(0).to(tl.int64)
    first_tile = tl.program_id(1) * tiles_per_program
    # the row's part of the host's page table and its columns; None and -1 where nothing is read
    table_ptr, max_pages = host_table_ptr, -1
    if host_table_ptr is not None:
        host_seq = tl.load(host_seq_ptr + row)
        max_pages = tl.where(host_seq >= 0, max_host_pages, -1)
        table_ptr += tl.maximum(host_seq, 0).to(tl.int64) * max_host_pages
    refine_row(
        query_ptr,
        weights_ptr,
        codes_ptr,
        scales_ptr,
        slots_ptr + row * num_entries,
        ids_ptr + row * num_entries,
        row,
        tl.load(pos_ptr + row),
        out_ptr + row * num_entries * (PAGES_PER_BLOCK * 64),
        num_entries,
        first_tile,
        tl.minimum(first_tile + tiles_per_program, num_tiles),
        host_codes_ptr,
        host_scales_ptr,
        table_ptr,
        max_pages,
        num_host_pages,
        WRITE_ALL,
        PAGES_PER_BLOCK,
        HEADS,
        PADDED_HEADS,
        BLOCK_KEYS,
        PRODUCT,
        HAS_SCALE,
        WIDEN,
    )
