"""Route each row to the few index heads that matter to it (MISA)."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.score_keys import split_keys
from hisparse_kernels.gpu.select import best_of_keys, ordered_keys
from hisparse_kernels.layouts import IndexLayout

_TILE_GROUPS = 16


def route_heads_triton(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    pooled_pages: torch.Tensor,
    page_table: torch.Tensor,
    row_seq: torch.Tensor,
    num_complete: torch.Tensor,
    num_routed: int,
    layout: IndexLayout,
    group_blocks: int = 8,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `route_heads`. One program for each row: its bits depend on no other row."""
    rows, heads = index_weights.shape
    if out is None:
        out = row_seq.new_empty(rows, num_routed)
    if rows == 0:
        return out
    codes, scales = split_keys(pooled_pages, layout)
    _route_heads_kernel[(rows,)](
        index_q.contiguous(),
        index_weights.contiguous(),
        codes,
        scales,
        page_table.contiguous(),
        row_seq.contiguous(),
        num_complete.contiguous(),
        out,
        page_table.shape[1],
        num_routed,
        group_blocks,
        HEADS=heads,
        PADDED_HEADS=max(16, triton.next_power_of_2(heads)),
        TILE_GROUPS=_TILE_GROUPS,
        HAS_SCALE=layout.name == "fp8",
        num_warps=4,
        maxnreg=128,  # never reached: without a bound ptxas spills to fit more programs on an SM
        enable_fp_fusion=False,  # the means must have the bits of the reference
    )
    return out


@triton.jit(do_not_specialize=["max_pages", "num_routed", "group_blocks"])
def _route_heads_kernel(
    query_ptr,
    weights_ptr,
    codes_ptr,
    scales_ptr,
    table_ptr,
    seq_ptr,
    complete_ptr,
    out_ptr,
    max_pages,
    num_routed,
    group_blocks,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    seq = tl.load(seq_ptr + row)
    num_complete = tl.where(seq < 0, 0, tl.load(complete_ptr + row))
    pages_ptr = table_ptr + tl.maximum(seq, 0).to(tl.int64) * max_pages
    head = tl.arange(0, PADDED_HEADS)
    heads_ptr = query_ptr + (row * HEADS + head) * 128
    energy = tl.zeros([PADDED_HEADS], dtype=tl.float32)
    for first in range(0, tl.cdiv(num_complete, group_blocks), TILE_GROUPS):
        group = first + tl.arange(0, TILE_GROUPS)
        dots = tl.zeros([TILE_GROUPS, PADDED_HEADS], dtype=tl.float32)
        for start in range(0, 128, 16):
            dim = start + tl.arange(0, 16)
            means = _group_means(
                codes_ptr, scales_ptr, pages_ptr, group, dim, num_complete, group_blocks, HAS_SCALE
            )
            query = tl.load(
                heads_ptr[:, None] + dim[None, :], mask=(head < HEADS)[:, None], other=0.0
            )
            dots = tl.dot(means, tl.trans(query.to(tl.float32)), dots, input_precision="ieee")
        energy += tl.sum(tl.maximum(dots, 0.0), axis=0)
    weights = tl.load(weights_ptr + row * HEADS + head, mask=head < HEADS, other=0.0)
    keys = tl.where((head < HEADS) & (seq >= 0), ordered_keys(energy * tl.abs(weights)), 0)
    best_of_keys(keys, head, num_routed, out_ptr + row * num_routed)


@triton.jit
def _group_means(
    codes_ptr,
    scales_ptr,
    pages_ptr,
    group,
    dim,
    num_complete,
    group_blocks,
    HAS_SCALE: tl.constexpr,
):
    """Some dimensions of the groups' means, [groups, dims]; 0 for a group beyond the last."""
    sums = (group[:, None] * dim[None, :] * 0).to(tl.float32)
    for i in range(group_blocks):
        block = group * group_blocks + i
        held = block < num_complete
        page = tl.load(pages_ptr + block // 64, mask=held, other=0).to(tl.int64)
        page_values: tl.constexpr = 64 * 132 if HAS_SCALE else 64 * 128
        values_ptr = codes_ptr + page * page_values + block % 64 * 128
        values = tl.load(values_ptr[:, None] + dim[None, :], mask=held[:, None], other=0.0)
        values = values.to(tl.float32)
        if HAS_SCALE:
            scale_ptr = scales_ptr + page * (64 * 33) + 64 * 32 + block % 64
            values *= tl.load(scale_ptr, mask=held, other=0.0)[:, None]
        sums += values
    count = tl.minimum(tl.maximum(num_complete - group * group_blocks, 1), group_blocks)
    return tl.div_rn(sums, count.to(tl.float32)[:, None])
