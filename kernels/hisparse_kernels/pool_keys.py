"""Pool index keys: one mean key per block, from the stored rows, summed in ascending order.

The open block of a sequence keeps an fp32 sum; a full block becomes one index row of the pooled
pages. Append, rebuild and rollback give the same bits for any split into calls.
"""

import torch

from hisparse_kernels.index_rows import (
    pack_index_rows_ref,
    split_pages,
    unpack_index_rows_ref,
    write_index_rows_ref,
)
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS, IndexLayout
from hisparse_kernels.shapes import Shapes, check_block_tokens

_CHUNK_BLOCKS = 64


def append_index_rows(
    rows: torch.Tensor,
    row_ids: torch.Tensor,
    index_pages: torch.Tensor,
    row_seq: torch.Tensor,
    row_pos: torch.Tensor,
    open_sums: torch.Tensor,
    state_rows: torch.Tensor,
    pooled_pages: torch.Tensor,
    pooled_base: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
) -> None:
    """Writes new index rows to their pages and folds them into the pooled keys, all in place.

    Each row joins its block's sum; the blocks that become full are closed.

    Args:
        rows: [n, row_bytes] uint8, stored index rows; those of one sequence are adjacent.
        row_ids: [n] int64, row of `index_pages` for each, distinct; -1 = do not write it.
        index_pages: [num_pages, page_bytes] uint8, written.
        row_seq: [n] int32, sequence of each row; -1 = padding row, which is not folded.
        row_pos: [n] int32, token positions, consecutive and ascending within a sequence, from the
            sequence's pooled length on.
        open_sums: [num_states, 128] fp32, sum of each open block; back to 0 when it closes.
        state_rows: [num_seqs] int64, the sequence's row of `open_sums`.
        pooled_pages: [num_pooled_pages, page_bytes] uint8; a closed block's mean goes to its row
            `pooled_base + block`.
        pooled_base: [num_seqs] int64, first pooled row of the sequence.
        block_tokens: tokens of one block, a multiple of 64.
        layout: how rows and pooled rows are stored.
    """
    shapes = _check_state(open_sums, state_rows, block_tokens, layout)
    _check_pooled(shapes, pooled_pages, pooled_base)
    shapes.check("rows", rows, "n row_bytes", torch.uint8)
    shapes.check("row_ids", row_ids, "n", torch.int64)
    shapes.check_packed("index_pages", index_pages, "num_pages page_bytes", torch.uint8)
    shapes.check("row_seq", row_seq, "n", torch.int32)
    shapes.check("row_pos", row_pos, "n", torch.int32)
    arguments = (
        rows,
        row_ids,
        index_pages,
        row_seq,
        row_pos,
        open_sums,
        state_rows,
        pooled_pages,
        pooled_base,
        block_tokens,
        layout,
    )
    if rows.is_cuda:
        from hisparse_kernels.gpu.pool_keys import append_index_rows_triton

        append_index_rows_triton(*arguments)
        return
    append_index_rows_ref(*arguments)


def append_index_rows_ref(
    rows: torch.Tensor,
    row_ids: torch.Tensor,
    index_pages: torch.Tensor,
    row_seq: torch.Tensor,
    row_pos: torch.Tensor,
    open_sums: torch.Tensor,
    state_rows: torch.Tensor,
    pooled_pages: torch.Tensor,
    pooled_base: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
) -> None:
    write_index_rows_ref(index_pages, row_ids, rows, layout)
    kept = row_seq >= 0
    seq, pos = row_seq[kept].long(), row_pos[kept].long()
    keys = unpack_index_rows_ref(rows[kept], layout)
    part = torch.stack([seq, pos // block_tokens])  # one part = what this call adds to one block
    (part_seq, part_block), part_of, counts = torch.unique_consecutive(
        part, dim=1, return_inverse=True, return_counts=True
    )
    if part_of.numel() == 0:
        return
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(seq), device=rows.device) - first[part_of]
    # Zeros after a part's last row change no bit of its sum.
    terms = keys.new_zeros(int(counts.max()), len(counts), INDEX_DIM)
    terms[rank, part_of] = keys
    sums = keys.new_zeros(len(counts), INDEX_DIM)
    continued = pos[first] % block_tokens != 0
    sums[continued] = open_sums[state_rows[part_seq[continued]]]
    for term in terms:
        sums += term
    closed = (pos[first] % block_tokens) + counts == block_tokens
    pooled_ids = pooled_base[part_seq] + part_block
    _store_means(sums[closed], pooled_ids[closed], pooled_pages, block_tokens, layout)
    last = torch.ones_like(closed)
    last[:-1] = part_seq[1:] != part_seq[:-1]
    open_sums[state_rows[part_seq[last]]] = sums.masked_fill(closed[:, None], 0.0)[last]


def rebuild_pooled_keys(
    index_pages: torch.Tensor,
    page_table: torch.Tensor,
    lengths: torch.Tensor,
    open_sums: torch.Tensor,
    state_rows: torch.Tensor,
    pooled_pages: torch.Tensor,
    pooled_base: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
) -> None:
    """Writes all pooled keys and open sums anew from the stored index rows, in place.

    Args:
        index_pages: [num_pages, page_bytes] uint8.
        page_table: [num_seqs, max_pages] int32, physical page of each page; -1 beyond the end.
        lengths: [num_seqs] int32, tokens of each sequence; -1 = leave it alone.
        open_sums: [num_states, 128] fp32, written.
        state_rows: [num_seqs] int64, the sequence's row of `open_sums`.
        pooled_pages: [num_pooled_pages, page_bytes] uint8, written.
        pooled_base: [num_seqs] int64, first pooled row of the sequence.
        block_tokens: tokens of one block, a multiple of 64.
        layout: how rows and pooled rows are stored.
    """
    shapes = _check_state(open_sums, state_rows, block_tokens, layout)
    _check_pooled(shapes, pooled_pages, pooled_base)
    _check_pages(shapes, index_pages, page_table, lengths)
    arguments = (
        index_pages,
        page_table,
        lengths,
        open_sums,
        state_rows,
        pooled_pages,
        pooled_base,
        block_tokens,
        layout,
    )
    if index_pages.is_cuda:
        from hisparse_kernels.gpu.pool_keys import rebuild_pooled_keys_triton

        rebuild_pooled_keys_triton(*arguments)
        return
    rebuild_pooled_keys_ref(*arguments)


def rebuild_pooled_keys_ref(
    index_pages: torch.Tensor,
    page_table: torch.Tensor,
    lengths: torch.Tensor,
    open_sums: torch.Tensor,
    state_rows: torch.Tensor,
    pooled_pages: torch.Tensor,
    pooled_base: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
) -> None:
    for seq, length in enumerate(lengths.tolist()):
        for block in range(0, length // block_tokens, _CHUNK_BLOCKS):
            end = min(block + _CHUNK_BLOCKS, length // block_tokens)
            sums = _block_sums(
                index_pages, page_table[seq], block, end, length, block_tokens, layout
            )
            pooled_ids = torch.arange(block, end, device=sums.device) + pooled_base[seq]
            _store_means(sums, pooled_ids, pooled_pages, block_tokens, layout)
    resum_open_blocks_ref(
        index_pages, page_table, lengths, open_sums, state_rows, block_tokens, layout
    )


def resum_open_blocks(
    index_pages: torch.Tensor,
    page_table: torch.Tensor,
    lengths: torch.Tensor,
    open_sums: torch.Tensor,
    state_rows: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
) -> None:
    """Rollback: sums the open block of each sequence anew, in place; reads only its rows.

    A closed block that the shorter length reopens is simply the open block. Arguments as in
    `rebuild_pooled_keys`; a length of -1 leaves the sequence alone.
    """
    shapes = _check_state(open_sums, state_rows, block_tokens, layout)
    _check_pages(shapes, index_pages, page_table, lengths)
    if index_pages.is_cuda:
        from hisparse_kernels.gpu.pool_keys import resum_open_blocks_triton

        resum_open_blocks_triton(
            index_pages, page_table, lengths, open_sums, state_rows, block_tokens, layout
        )
        return
    resum_open_blocks_ref(
        index_pages, page_table, lengths, open_sums, state_rows, block_tokens, layout
    )


def resum_open_blocks_ref(
    index_pages: torch.Tensor,
    page_table: torch.Tensor,
    lengths: torch.Tensor,
    open_sums: torch.Tensor,
    state_rows: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
) -> None:
    for seq, length in enumerate(lengths.tolist()):
        if length < 0:
            continue
        block = length // block_tokens
        sums = _block_sums(
            index_pages, page_table[seq], block, block + 1, length, block_tokens, layout
        )
        open_sums[state_rows[seq]] = sums[0]


def _block_sums(
    index_pages: torch.Tensor,
    pages: torch.Tensor,
    first_block: int,
    end_block: int,
    length: int,
    block_tokens: int,
    layout: IndexLayout,
) -> torch.Tensor:
    """Sums [end - first, 128] over one sequence's stored rows below `length`, ascending."""
    first_token, end_token = first_block * block_tokens, min(end_block * block_tokens, length)
    keys = index_pages.new_zeros(
        (end_block - first_block) * block_tokens, INDEX_DIM, dtype=torch.float32
    )
    if end_token > first_token:
        held = pages[first_token // PAGE_TOKENS : -(-end_token // PAGE_TOKENS)].long()
        stored, scale = split_pages(index_pages.index_select(0, held), layout)
        count = end_token - first_token
        keys[:count] = stored[:count] if scale is None else stored[:count] * scale[:count, None]
    sums = keys.new_zeros(end_block - first_block, INDEX_DIM)
    for term in keys.unflatten(0, (-1, block_tokens)).unbind(1):
        sums += term
    return sums


def _store_means(
    sums: torch.Tensor,
    pooled_ids: torch.Tensor,
    pooled_pages: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
) -> None:
    means = pack_index_rows_ref(sums / block_tokens, layout)
    write_index_rows_ref(pooled_pages, pooled_ids, means, layout)


def _check_state(
    open_sums: torch.Tensor, state_rows: torch.Tensor, block_tokens: int, layout: IndexLayout
) -> Shapes:
    check_block_tokens(block_tokens, PAGE_TOKENS)
    shapes = Shapes(page_bytes=layout.page_bytes, row_bytes=layout.row_bytes)
    shapes.check_packed("open_sums", open_sums, f"num_states {INDEX_DIM}", torch.float32)
    shapes.check("state_rows", state_rows, "num_seqs", torch.int64)
    return shapes


def _check_pooled(shapes: Shapes, pooled_pages: torch.Tensor, pooled_base: torch.Tensor) -> None:
    shapes.check_packed("pooled_pages", pooled_pages, "num_pooled_pages page_bytes", torch.uint8)
    shapes.check("pooled_base", pooled_base, "num_seqs", torch.int64)


def _check_pages(
    shapes: Shapes, index_pages: torch.Tensor, page_table: torch.Tensor, lengths: torch.Tensor
) -> None:
    shapes.check_packed("index_pages", index_pages, "num_pages page_bytes", torch.uint8)
    shapes.check("page_table", page_table, "num_seqs max_pages", torch.int32)
    shapes.check("lengths", lengths, "num_seqs", torch.int32)
