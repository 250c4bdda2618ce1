"""Append the rows of a decode step to a layer: pack them, write them where they belong, pool."""

from dataclasses import dataclass

import torch

from hisparse_kernels.index_rows import (
    pack_index_rows_ref,
    read_index_rows_ref,
    write_index_rows_ref,
)
from hisparse_kernels.kv_rows import pack_kv_rows_ref
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS, IndexLayout, KvLayout
from hisparse_kernels.pool_keys import append_index_rows_ref
from hisparse_kernels.resolve import SlotRanges
from hisparse_kernels.shapes import FLOATS, Shapes, check_block_tokens
from hisparse_kernels.spill import spill_ref


@dataclass(frozen=True)
class StepRows:
    """Whose the rows of a step are.

    Attributes:
        row_seq: [rows] int32, sequence of each row, those of one sequence adjacent; -1 = padding
            row.
        row_pos: [rows] int32, token positions, consecutive and ascending within a sequence.
        host_row_ids: [rows] int64, page * 64 + offset in the host pool, distinct; -1 = not written
            there.
    """

    row_seq: torch.Tensor
    row_pos: torch.Tensor
    host_row_ids: torch.Tensor

    def check(self, shapes: Shapes) -> None:
        """Raises ValueError unless every tensor is as it must be."""
        shapes.check_packed("row_seq", self.row_seq, "rows", torch.int32)
        shapes.check_packed("row_pos", self.row_pos, "rows", torch.int32)
        shapes.check_packed("host_row_ids", self.host_row_ids, "rows", torch.int64)


@dataclass(frozen=True)
class IndexSide:
    """What the indexer of an anchor layer gave for the rows, and what it is written to.

    Attributes:
        index_k: [rows, 128] float, the new keys.
        index_q: [rows, heads, 128] float or e4m3; None = it is not looked at.
        index_weights: [rows, heads] fp32; None = it is not looked at.
        largest: [3, rows] fp32, written: the largest magnitude in each row of `index_q`,
            `index_weights` and `index_k`, NaN where there is a NaN; not written for None.
        window_pages: [window_slots * pages_per_block, page_bytes] uint8, written.
        slot_table: [entries] int16 or int32, window slot of each block, relative to its sequence's
            first slot; -1 = it has none, and its row is not written to the window.
        window: where each sequence's slots and table lie.
        host_pages: [num_pages, page_bytes] uint8, index pages of the host pool, written.
        host_pooled: [num_pages, row_bytes] uint8, written: the key of a block that a row fills goes
            to the page that holds the row, unless the row is not written to the host.
        open_sums: [num_states, 128] fp32, sum of each open block; back to 0 when it closes.
        state_rows: [num_seqs] int64, the sequence's row of `open_sums`.
        pooled_pages: [num_pooled_pages, page_bytes] uint8; a closed block's mean goes to its row
            `pooled_base + block`.
        pooled_base: [num_seqs] int64, first pooled row of the sequence.
        block_tokens: tokens of one block, a multiple of 64.
        layout: how index rows and pooled rows are stored.
    """

    index_k: torch.Tensor
    index_q: torch.Tensor | None
    index_weights: torch.Tensor | None
    largest: torch.Tensor
    window_pages: torch.Tensor
    slot_table: torch.Tensor
    window: SlotRanges
    host_pages: torch.Tensor
    host_pooled: torch.Tensor
    open_sums: torch.Tensor
    state_rows: torch.Tensor
    pooled_pages: torch.Tensor
    pooled_base: torch.Tensor
    block_tokens: int
    layout: IndexLayout

    def check(self, shapes: Shapes) -> None:
        """Raises ValueError unless every tensor is as it must be."""
        check_block_tokens(self.block_tokens, PAGE_TOKENS)
        shapes.check("index_k", self.index_k, f"rows {INDEX_DIM}", *FLOATS)
        if self.index_q is not None:
            dtypes = *FLOATS, torch.float8_e4m3fn
            shapes.check("index_q", self.index_q, f"rows heads {INDEX_DIM}", *dtypes)
        if self.index_weights is not None:
            shapes.check("index_weights", self.index_weights, "rows heads", torch.float32)
        shapes.check_packed("largest", self.largest, "3 rows", torch.float32)
        for name, pages in (("window", self.window_pages), ("host", self.host_pages)):
            dims = f"num_{name}_pages page_bytes"
            shapes.check_packed(f"{name}_pages", pages, dims, torch.uint8)
        shapes.check_packed(
            "host_pooled", self.host_pooled, "num_host_pages row_bytes", torch.uint8
        )
        shapes.check_packed("slot_table", self.slot_table, "entries", torch.int16, torch.int32)
        for name in ("slot_base", "table_base"):
            shapes.check_packed(name, getattr(self.window, name), "num_seqs", torch.int64)
        shapes.check_packed("open_sums", self.open_sums, f"num_states {INDEX_DIM}", torch.float32)
        shapes.check_packed("state_rows", self.state_rows, "num_seqs", torch.int64)
        dims = "num_pooled_pages page_bytes"
        shapes.check_packed("pooled_pages", self.pooled_pages, dims, torch.uint8)
        shapes.check_packed("pooled_base", self.pooled_base, "num_seqs", torch.int64)


def append_rows(
    values: torch.Tensor,
    layout: KvLayout,
    rows: StepRows,
    host_rows: torch.Tensor,
    packed: torch.Tensor,
    index: IndexSide | None = None,
) -> None:
    """Writes the rows of a decode step wherever they belong, in place and in one launch.

    KV rows are packed, and written to the host. Index rows are packed, written to their block's
    window slot and to the host, and folded into the pooled keys, as `append_index_rows` does; the
    blocks that become full are closed.

    Args:
        values: [rows, query_dim] float, latent then rope, as in `pack_kv_rows`.
        layout: how a KV row is stored.
        rows: whose they are; of padding rows nothing is written but `index.largest`.
        host_rows: [num_host_rows, row_bytes] uint8, written.
        packed: [rows, row_bytes] uint8, written: the stored KV rows.
        index: the index side of an anchor layer; None = there is none.
    """
    shapes = Shapes(query_dim=layout.query_dim, kv_row_bytes=layout.row_bytes)
    shapes.check("values", values, "rows query_dim", *FLOATS)
    rows.check(shapes)
    shapes.check_packed("host_rows", host_rows, "num_host_rows kv_row_bytes", torch.uint8)
    shapes.check_packed("packed", packed, "rows kv_row_bytes", torch.uint8)
    if index is not None:
        shapes.bind(page_bytes=index.layout.page_bytes, row_bytes=index.layout.row_bytes)
        index.check(shapes)
    if values.is_cuda:
        from hisparse_kernels.gpu.append_rows import append_rows_triton

        append_rows_triton(values, layout, rows, host_rows, packed, index)
        return
    append_rows_ref(values, layout, rows, host_rows, packed, index)


def append_rows_ref(
    values: torch.Tensor,
    layout: KvLayout,
    rows: StepRows,
    host_rows: torch.Tensor,
    packed: torch.Tensor,
    index: IndexSide | None = None,
) -> None:
    packed.copy_(pack_kv_rows_ref(values, layout).where(rows.row_seq[:, None] >= 0, packed))
    spill_ref(packed, rows.host_row_ids, host_rows)
    if index is None:
        return
    index_rows = pack_index_rows_ref(index.index_k, index.layout)
    append_index_rows_ref(
        index_rows,
        _window_row_ids(rows, index),
        index.window_pages,
        rows.row_seq,
        rows.row_pos,
        index.open_sums,
        index.state_rows,
        index.pooled_pages,
        index.pooled_base,
        index.block_tokens,
        index.layout,
    )
    write_index_rows_ref(index.host_pages, rows.host_row_ids, index_rows, index.layout)
    _spill_closed_blocks(rows, index)
    for place, given in zip(
        index.largest, (index.index_q, index.index_weights, index.index_k), strict=True
    ):
        if given is not None:
            place.copy_(given.float().abs().flatten(1).amax(1))


def _window_row_ids(rows: StepRows, index: IndexSide) -> torch.Tensor:
    """[rows] int64, row of the window for each; -1 = none."""
    seq, pos = rows.row_seq.clamp(min=0).long(), rows.row_pos.clamp(min=0).long()
    block, offset = pos // index.block_tokens, pos % index.block_tokens
    slot = index.slot_table[index.window.table_base[seq] + block].long()
    row_ids = (index.window.slot_base[seq] + slot) * index.block_tokens + offset
    return row_ids.masked_fill((rows.row_seq < 0) | (slot < 0), -1)


def _spill_closed_blocks(rows: StepRows, index: IndexSide) -> None:
    fills = rows.row_pos % index.block_tokens == index.block_tokens - 1
    fills &= (rows.row_seq >= 0) & (rows.host_row_ids >= 0)
    block = rows.row_pos[fills].long() // index.block_tokens
    pooled_ids = index.pooled_base[rows.row_seq[fills].long()] + block
    closed = read_index_rows_ref(index.pooled_pages, pooled_ids, index.layout)
    index.host_pooled.index_copy_(0, rows.host_row_ids[fills] // PAGE_TOKENS, closed)
