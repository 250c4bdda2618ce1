"""Route each row to the few index heads that matter to it (MISA): sum its groups, then choose.

The first kernel forms the means of a chunk of full groups once and multiplies the queries of a run
of rows with them; a mean is three bf16 values, so the products are as exact as in fp32. The second
adds up a row's chunks in ascending order, and its last group, which depends on where the row ends.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.group_sums import (
    pooled_entries,
    pooled_keys,
    sum_groups_fp32_kernel,
    sum_groups_kernel,
)
from hisparse_kernels.gpu.interpreter import interpreting
from hisparse_kernels.gpu.score_keys import codes_and_scales
from hisparse_kernels.layouts import IndexLayout
from hisparse_kernels.pooled_rows import (
    PooledRows,
    PooledTable,
    pooled_entries_of,
    pooled_pages_of,
)
from hisparse_kernels.route_heads import CHUNK_GROUPS, route_workspace_size

_TILE_QUERIES = 128  # heads of the rows in one product: two wgmma, one tcgen05
_MOST_ROWS = 64  # rows that share the means of one program
_PROGRAMS = 264  # two rounds of one on each of 132 SMs
_MOST_UNROLLED = 8  # blocks of a group that are read at once
_MERGED_CHUNKS = 16


def route_heads_triton(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    pooled_pages: torch.Tensor,
    page_table: PooledTable,
    row_seq: torch.Tensor,
    num_complete: torch.Tensor,
    num_routed: int,
    layout: IndexLayout,
    group_blocks: int = 8,
    out: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `route_heads`. Chunks of groups are fixed, so a row's bits depend on no other row."""
    rows, heads = index_weights.shape
    if out is None:
        out = row_seq.new_empty(rows, num_routed)
    if rows == 0:
        return out
    max_pages = pooled_pages_of(page_table)
    num_values = route_workspace_size(rows, heads, max_pages, group_blocks)
    if workspace is None:
        workspace = index_weights.new_empty(num_values)
    call = _Call(
        index_q=index_q.contiguous(),
        index_weights=index_weights.contiguous(),
        pooled=(*codes_and_scales(pooled_pages, layout), pooled_entries_of(page_table)),
        rows=(row_seq.contiguous(), num_complete.contiguous()),
        max_pages=max_pages,
        workspace=workspace,
        num_chunks=num_values // (rows * heads),
        options={
            "HEADS": heads,
            "GROUP_BLOCKS": group_blocks,
            "CHUNK_GROUPS": CHUNK_GROUPS,
            "HAS_SCALE": layout.name == "fp8",
            "BY_ROW": isinstance(page_table, PooledRows),
            "UNROLLED": group_blocks <= _MOST_UNROLLED,
            "enable_fp_fusion": False,  # the means must have the bits of the reference
        },
    )
    if call.num_chunks:
        _sum_groups(call)
    _choose_heads(call, out)
    return out


@dataclass(frozen=True)
class _Call:
    """One call, as both kernels are launched with it; all tensors are contiguous.

    Attributes:
        pooled: codes, scales and table of the pooled keys.
        rows: sequence and complete blocks of each row.
        workspace: [rows, num_chunks, heads] fp32, sums of the chunks of full groups.
        options: compile-time values of both.
    """

    index_q: torch.Tensor
    index_weights: torch.Tensor
    pooled: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    rows: tuple[torch.Tensor, torch.Tensor]
    max_pages: int
    workspace: torch.Tensor
    num_chunks: int
    options: dict[str, object]


def _sum_groups(call: _Call) -> None:
    rows, heads, _ = call.index_q.shape
    in_fp32 = call.index_q.dtype == torch.float32
    kernel = sum_groups_fp32_kernel if in_fp32 else sum_groups_kernel
    padded_heads = max(16, triton.next_power_of_2(heads))
    rows_each = _rows_per_program(rows, call.num_chunks)
    kernel[call.num_chunks, triton.cdiv(rows, rows_each)](
        call.index_q,
        *call.pooled,
        *call.rows,
        call.workspace,
        rows,
        rows_each,
        call.max_pages,
        call.num_chunks,
        PADDED_HEADS=padded_heads,
        TILE_ROWS=max(1, _TILE_QUERIES // padded_heads),
        MOST_ROWS=_MOST_ROWS,
        WIDEN=interpreting(),
        num_warps=4 if in_fp32 else 8,
        maxnreg=255,  # without a bound ptxas spills to fit more programs on an SM
        **call.options,
    )


def _choose_heads(call: _Call, out: torch.Tensor) -> None:
    rows, num_routed = out.shape
    _choose_heads_kernel[(rows,)](
        call.index_q,
        call.index_weights,
        *call.pooled,
        *call.rows,
        call.workspace,
        out,
        call.max_pages,
        call.num_chunks,
        num_routed,
        PADDED_HEADS=triton.next_power_of_2(call.index_q.shape[1]),
        MERGED_CHUNKS=_MERGED_CHUNKS,
        num_warps=4,
        **call.options,
    )


def _rows_per_program(rows: int, num_chunks: int) -> int:
    wanted = triton.cdiv(_PROGRAMS, num_chunks)  # programs over the rows
    return min(_MOST_ROWS, int(triton.next_power_of_2(triton.cdiv(rows, wanted))))


@triton.jit(do_not_specialize=["max_pages", "num_chunks", "num_routed"])
def _choose_heads_kernel(
    query_ptr,
    weights_ptr,
    codes_ptr,
    scales_ptr,
    table_ptr,
    seq_ptr,
    complete_ptr,
    sums_ptr,
    out_ptr,
    max_pages,
    num_chunks,
    num_routed,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    MERGED_CHUNKS: tl.constexpr,
    GROUP_BLOCKS: tl.constexpr,
    CHUNK_GROUPS: tl.constexpr,
    UNROLLED: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BY_ROW: tl.constexpr,
):
    """Heads with the largest sums, ascending; -1 in a padding row."""
    row = tl.program_id(0).to(tl.int64)
    seq = tl.load(seq_ptr + row)
    num_complete = tl.where(seq < 0, 0, tl.load(complete_ptr + row))
    num_groups = num_complete // GROUP_BLOCKS
    head = tl.arange(0, PADDED_HEADS)
    real = head < HEADS
    energy = tl.zeros([PADDED_HEADS], dtype=tl.float32)
    for first in range(0, tl.cdiv(num_groups, CHUNK_GROUPS), MERGED_CHUNKS):
        chunk = first + tl.arange(0, MERGED_CHUNKS)[:, None]
        held = real & (chunk * CHUNK_GROUPS < num_groups)
        sums = tl.load(sums_ptr + (row * num_chunks + chunk) * HEADS + head, mask=held, other=0.0)
        energy += tl.sum(sums, axis=0)
    if num_complete > num_groups * GROUP_BLOCKS:
        pages_ptr = pooled_entries(table_ptr, seq, max_pages, BY_ROW)
        mean = _last_mean(
            codes_ptr,
            scales_ptr,
            pages_ptr,
            num_complete,
            GROUP_BLOCKS,
            UNROLLED,
            HAS_SCALE,
            BY_ROW,
        )
        heads_ptr = query_ptr + (row * HEADS + head) * 128
        query = tl.load(heads_ptr[:, None] + tl.arange(0, 128), mask=real[:, None], other=0.0)
        energy += tl.maximum(tl.sum(query.to(tl.float32) * mean, axis=1), 0.0)
    weights = tl.load(weights_ptr + row * HEADS + head, mask=real, other=0.0)
    chosen = _are_largest(tl.where(real, energy * tl.abs(weights), -1.0), head, num_routed)
    place = tl.cumsum(chosen, 0) - chosen
    heads = tl.where(seq < 0, -1, head)
    tl.store(out_ptr + row * num_routed + place, heads, mask=(chosen > 0) & (place < num_routed))


@triton.jit
def _last_mean(
    codes_ptr,
    scales_ptr,
    pages_ptr,
    num_complete,
    GROUP_BLOCKS: tl.constexpr,
    UNROLLED: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BY_ROW: tl.constexpr,
):
    """Mean of the blocks after the last full group: [1, 128] fp32."""
    begin = num_complete // GROUP_BLOCKS * GROUP_BLOCKS + tl.arange(0, 1)
    dim = tl.arange(0, 128)
    sums = tl.zeros([1, 128], dtype=tl.float32)
    if UNROLLED:
        for i in tl.static_range(GROUP_BLOCKS - 1):
            held = begin + i < num_complete
            sums += pooled_keys(
                codes_ptr, scales_ptr, pages_ptr, begin + i, held, dim, HAS_SCALE, BY_ROW
            )
    else:
        for i in range(num_complete % GROUP_BLOCKS):
            held = begin + i < num_complete
            sums += pooled_keys(
                codes_ptr, scales_ptr, pages_ptr, begin + i, held, dim, HAS_SCALE, BY_ROW
            )
    return tl.div_rn(sums, (num_complete % GROUP_BLOCKS).to(tl.float32))


@triton.jit
def _are_largest(values, column, k):
    """1 for the k largest of a few values, else 0; ties: the lowest column."""
    mine, other = values[None, :], values[:, None]
    earlier = column[:, None] < column[None, :]
    ahead = (other > mine) | ((other == mine) & earlier)
    return (tl.sum(ahead.to(tl.int32), axis=0) < k).to(tl.int32)
