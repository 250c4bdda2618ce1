"""Route each row to the few index heads that matter to it (MISA)."""

import torch

from hisparse_kernels.index_rows import split_pages
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS, IndexLayout
from hisparse_kernels.pooled_rows import (
    PooledTable,
    check_pooled_table,
    in_pages,
    pooled_pages_of,
)
from hisparse_kernels.score_keys import KEY_ALIGN, halving_sum, relu_dots
from hisparse_kernels.shapes import Shapes, check_at_least
from hisparse_kernels.topk import topk_ref

_CHUNK_ROWS = 64
CHUNK_GROUPS = 32  # full groups whose sum is taken in one piece


def route_workspace_size(rows: int, heads: int, max_pages: int, group_blocks: int = 8) -> int:
    """fp32 values that `route_heads` keeps between its passes: a sum for each chunk of groups."""
    num_groups = max_pages * PAGE_TOKENS // group_blocks
    return -(-num_groups // CHUNK_GROUPS) * rows * heads


def route_heads(
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
    """Heads with the largest sum over groups of |w[j] * relu(q[j] . group)|.

    A group is the fp32 mean of up to `group_blocks` dequantised pooled keys, in ascending order.

    Args:
        index_q: [rows, heads, 128] fp32, bf16 or e4m3, finite.
        index_weights: [rows, heads] fp32, finite.
        pooled_pages: [num_pooled_pages, page_bytes] uint8, contiguous.
        page_table: [num_seqs, max_pages] int32, physical pooled page of each 64 blocks; -1 beyond
            the end. Or the row of each block: max_pages * 64 columns of `PooledRows`.
        row_seq: [rows] int32, sequence of each row; -1 = padding row.
        num_complete: [rows] int32, complete blocks before the row; only these are read.
        num_routed: heads to keep, 1..heads.
        layout: how pooled rows are stored.
        group_blocks: blocks in one group.
        out: [rows, num_routed] int32, contiguous, to write to and return; None = allocate.
        workspace: [at least `route_workspace_size`] fp32, contiguous; None = allocate if needed.

    Returns:
        [rows, num_routed] int32, head ids, ascending; -1 in padding rows. Ties: the lowest head
        wins, so without a complete block these are the lowest heads.
    """
    shapes = Shapes(page_bytes=layout.page_bytes, num_routed=num_routed)
    shapes.check_index_queries(index_q, index_weights)
    shapes.check_packed("pooled_pages", pooled_pages, "num_pooled_pages page_bytes", torch.uint8)
    check_pooled_table(shapes, "page_table", page_table)
    shapes.check("row_seq", row_seq, "rows", torch.int32)
    shapes.check("num_complete", num_complete, "rows", torch.int32)
    check_at_least("num_routed", num_routed, 1)
    check_at_least("group_blocks", group_blocks, 1)
    check_at_least("number of heads", index_q.shape[1], num_routed)
    if out is not None:
        shapes.check_packed("out", out, "rows num_routed", torch.int32)
    if workspace is not None:
        shapes.check_packed("workspace", workspace, "values", torch.float32)
        rows, heads = index_weights.shape
        needed = route_workspace_size(rows, heads, pooled_pages_of(page_table), group_blocks)
        check_at_least("number of workspace values", workspace.numel(), needed)
    args = (
        index_q,
        index_weights,
        pooled_pages,
        page_table,
        row_seq,
        num_complete,
        num_routed,
        layout,
        group_blocks,
        out,
        workspace,
    )
    if index_q.is_cuda:
        from hisparse_kernels.gpu.route_heads import route_heads_triton

        return route_heads_triton(*args)
    return route_heads_ref(*args)


def route_heads_ref(
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
    pooled_pages, page_table = in_pages(pooled_pages, page_table, layout)
    routed = row_seq.new_empty(len(row_seq), num_routed) if out is None else out
    routed.fill_(-1)
    for seq in row_seq[row_seq >= 0].unique().tolist():
        seq_rows = (row_seq == seq).nonzero()[:, 0]
        most = int(num_complete[seq_rows].max())
        held = page_table[seq, : -(-most // PAGE_TOKENS)]
        keys, scale = split_pages(pooled_pages.index_select(0, held), layout)
        pooled = (keys if scale is None else keys * scale[:, None])[:most]
        means = _running_means(pooled, group_blocks)
        for rows in seq_rows.split(_CHUNK_ROWS):
            energy = _head_energy(index_q[rows].float(), means, num_complete[rows], group_blocks)
            routed[rows] = topk_ref(energy * index_weights[rows].abs(), num_routed)
    return routed


def _running_means(pooled: torch.Tensor, group_blocks: int) -> torch.Tensor:
    """Mean of each group's first 1..group_blocks keys: [groups, group_blocks, 128] fp32."""
    num_groups = -(-pooled.shape[0] // group_blocks)
    # at least one group: a row without a complete block sees it, masked
    groups = pooled.new_zeros(max(num_groups, 1) * group_blocks, INDEX_DIM)
    groups[: pooled.shape[0]] = pooled
    running = groups.unflatten(0, (-1, group_blocks))
    for last in range(1, group_blocks):
        running[:, last] += running[:, last - 1]
    counts = torch.arange(1, group_blocks + 1, device=pooled.device)
    return torch.div(running, counts[:, None])


def _head_energy(
    index_q: torch.Tensor, means: torch.Tensor, num_complete: torch.Tensor, group_blocks: int
) -> torch.Tensor:
    """Sum over a row's groups of relu(q[j] . group): [n, heads]. Each row adds in its own order."""
    num_full, num_partial = num_complete // group_blocks, num_complete % group_blocks
    energy = index_q.new_zeros(index_q.shape[:2])
    for first in range(0, means.shape[0], KEY_ALIGN):
        dots = _dots(index_q, means[first : first + KEY_ALIGN, -1])
        group = torch.arange(first, first + KEY_ALIGN, device=dots.device)
        dots.masked_fill_((group >= num_full[:, None])[:, None], 0.0)
        energy += halving_sum(dots.transpose(1, 2))
    # rows that end inside the same group after as many blocks share one partial mean
    ends, end_of_row = num_complete.unique(return_inverse=True)
    partial = means[(ends // group_blocks).clamp(max=means.shape[0] - 1), ends % group_blocks - 1]
    for first in range(0, len(ends), KEY_ALIGN):
        dots = _dots(index_q, partial[first : first + KEY_ALIGN])
        here = (num_partial > 0) & (end_of_row // KEY_ALIGN == first // KEY_ALIGN)
        column = (end_of_row % KEY_ALIGN)[:, None, None].expand(-1, dots.shape[1], 1)
        energy += dots.gather(2, column)[:, :, 0].masked_fill(~here[:, None], 0.0)
    return energy


def _dots(index_q: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """relu(q . key) [n, heads, 64]; columns beyond the keys are 0."""
    keys = torch.nn.functional.pad(keys, (0, 0, 0, KEY_ALIGN - keys.shape[0]))
    scratch = keys.new_empty(max(index_q.shape[0] * index_q.shape[1], KEY_ALIGN) * KEY_ALIGN)
    return relu_dots(index_q, keys, scratch)
