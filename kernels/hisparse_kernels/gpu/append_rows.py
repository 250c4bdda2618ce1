"""Append a decode step's rows in Triton: a row has one program for each side of its layer.

Of an anchor layer they are its KV row, its index row and its index inputs; else the KV row alone.
"""

import torch
import triton
import triton.language as tl

from hisparse_kernels.append_rows import IndexSide, StepRows
from hisparse_kernels.gpu.e4m3 import from_e4m3
from hisparse_kernels.gpu.index_rows import key_values, store_in_pages, store_packed, stored_key
from hisparse_kernels.gpu.kv_rows import fp8_parts, fp8_sizes, plain_values, store_fp8, store_plain
from hisparse_kernels.gpu.overlap import begin_overlapped, overlap_options
from hisparse_kernels.gpu.pool_keys import count_rows, mean_key
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS, KvLayout

_DIM = tl.constexpr(INDEX_DIM)
_PAGE_TOKENS = tl.constexpr(PAGE_TOKENS)
_PLAIN_BLOCK = tl.constexpr(1024)
_SIDES = 3
_MOST_AT_ONCE = 8192  # values of a row of queries, in the registers of a program


def append_rows_triton(
    values: torch.Tensor,
    layout: KvLayout,
    rows: StepRows,
    host_rows: torch.Tensor,
    packed: torch.Tensor,
    index: IndexSide | None = None,
) -> None:
    """See `hisparse_kernels.append_rows.append_rows`."""
    num_rows = values.shape[0]
    if not num_rows:
        return
    is_plain = layout.name in ("bf16", "fp32")
    num_scales, rope_dim, row_bytes = (0, 0, 0) if is_plain else fp8_sizes(layout)
    _append_kernel[(num_rows, 1 if index is None else _SIDES)](
        values,
        *values.stride(),
        rows.row_seq,
        rows.row_pos,
        rows.host_row_ids,
        host_rows,
        packed,
        num_rows,
        *_index_arguments(index),
        QUERY_DIM=layout.query_dim,
        BF16=layout.name == "bf16",
        NUM_SCALES=num_scales,
        ROPE_DIM=rope_dim,
        ROW_BYTES=row_bytes,
        **_index_sizes(index),
        num_warps=INDEX_DIM // 32,  # a thread for each value of a key
        enable_fp_fusion=False,
        **overlap_options(),
    )


def _index_arguments(index: IndexSide | None) -> tuple[torch.Tensor | int | None, ...]:
    if index is None:
        return (None, 0, 0, None, None, 0, 0, *(None,) * 11, 0)
    weights, query = index.index_weights, index.index_q
    if query is not None:
        query = query.contiguous()
        query = query.view(torch.uint8) if query.element_size() == 1 else query
    return (
        index.index_k,
        *index.index_k.stride(),
        query,
        weights,
        *((0, 0) if weights is None else weights.stride()),
        index.largest,
        index.window_pages,
        index.slot_table,
        index.window.slot_base,
        index.window.table_base,
        index.host_pages,
        index.host_pooled,
        index.open_sums,
        index.state_rows,
        index.pooled_pages,
        index.pooled_base,
        index.block_tokens,
    )


def _index_sizes(index: IndexSide | None) -> dict[str, int | bool]:
    given = (None, None) if index is None else (index.index_q, index.index_weights)
    query_values, weights = (0 if one is None else one[0].numel() for one in given)
    return {
        "QUERY_VALUES": query_values,
        "QUERY_BLOCK": min(triton.next_power_of_2(query_values), _MOST_AT_ONCE),
        "WEIGHTS": weights,
        "WEIGHTS_BLOCK": triton.next_power_of_2(weights),
        "FP8": index is not None and index.layout.name == "fp8",
    }


@triton.jit(do_not_specialize=["num_rows"])
def _append_kernel(
    values_ptr,
    row_stride,
    dim_stride,
    seq_ptr,
    pos_ptr,
    host_ids_ptr,
    host_ptr,
    packed_ptr,
    num_rows,
    keys_ptr,
    key_row_stride,
    key_dim_stride,
    query_ptr,
    weights_ptr,
    weight_row_stride,
    weight_head_stride,
    largest_ptr,
    window_ptr,
    slot_table_ptr,
    slot_base_ptr,
    table_base_ptr,
    host_pages_ptr,
    host_pooled_ptr,
    open_ptr,
    state_ptr,
    pooled_ptr,
    pooled_base_ptr,
    block_tokens,
    QUERY_DIM: tl.constexpr,
    BF16: tl.constexpr,
    NUM_SCALES: tl.constexpr,
    ROPE_DIM: tl.constexpr,
    ROW_BYTES: tl.constexpr,
    QUERY_VALUES: tl.constexpr,
    QUERY_BLOCK: tl.constexpr,
    WEIGHTS: tl.constexpr,
    WEIGHTS_BLOCK: tl.constexpr,
    FP8: tl.constexpr,
):
    begin_overlapped()
    row = tl.program_id(0).to(tl.int64)
    side = tl.program_id(1)
    if side == 0:
        if tl.load(seq_ptr + row) >= 0:
            host = (host_ptr, tl.load(host_ids_ptr + row))
            values_ptr += row * row_stride
            if NUM_SCALES:
                places = (packed_ptr, row, host)
                _append_fp8_row(values_ptr, dim_stride, places, NUM_SCALES, ROPE_DIM, ROW_BYTES)
            else:
                _append_plain_row(values_ptr, dim_stride, packed_ptr, row, host, QUERY_DIM, BF16)
    elif keys_ptr is not None:
        keys = (keys_ptr, key_row_stride, key_dim_stride)
        if side == 1:
            rows = (seq_ptr, pos_ptr, host_ids_ptr, num_rows)
            window = (window_ptr, slot_table_ptr, slot_base_ptr, table_base_ptr)
            pooled = (pooled_ptr, pooled_base_ptr, open_ptr, state_ptr)
            host_pages = (host_pages_ptr, host_pooled_ptr)
            _append_sequence(row, rows, keys, window, pooled, host_pages, block_tokens, FP8)
        else:
            weights = (weights_ptr, weight_row_stride, weight_head_stride)
            place = (largest_ptr + row, row, num_rows)
            _note_inputs(
                place, query_ptr, weights, keys, QUERY_VALUES, QUERY_BLOCK, WEIGHTS, WEIGHTS_BLOCK
            )


@triton.jit
def _append_fp8_row(
    values_ptr,
    dim_stride,
    places,
    NUM_SCALES: tl.constexpr,
    ROPE_DIM: tl.constexpr,
    ROW_BYTES: tl.constexpr,
):
    packed_ptr, row, host = places
    host_ptr, host_row = host
    parts = fp8_parts(values_ptr, dim_stride, NUM_SCALES, ROPE_DIM)
    store_fp8(packed_ptr + row * ROW_BYTES, parts, NUM_SCALES, ROPE_DIM)
    if host_row >= 0:
        store_fp8(host_ptr + host_row * ROW_BYTES, parts, NUM_SCALES, ROPE_DIM)


@triton.jit
def _append_plain_row(
    values_ptr, dim_stride, packed_ptr, row, host, QUERY_DIM: tl.constexpr, BF16: tl.constexpr
):
    host_ptr, host_row = host
    values = plain_values(values_ptr, dim_stride, QUERY_DIM, _PLAIN_BLOCK, BF16)
    store_plain(packed_ptr, row, values, QUERY_DIM, _PLAIN_BLOCK)
    if host_row >= 0:
        store_plain(host_ptr, host_row, values, QUERY_DIM, _PLAIN_BLOCK)


@triton.jit
def _append_sequence(row, rows, keys, window, pooled, host, block_tokens, FP8: tl.constexpr):
    """Appends the index rows of a sequence, if `row` is its first: the sum takes them in turn."""
    seq_ptr, pos_ptr, host_ids_ptr, num_rows = rows
    window_ptr, slot_table_ptr, slot_base_ptr, table_base_ptr = window
    pooled_ptr, pooled_base_ptr, open_ptr, state_ptr = pooled
    seq, first_pos = tl.load(seq_ptr + row), tl.load(pos_ptr + row)
    is_first = tl.load(seq_ptr + row - 1, mask=row > 0, other=-1) != seq
    count = count_rows(seq_ptr, seq, row.to(tl.int32), num_rows, 128)
    if (seq >= 0) & is_first:
        slot_table_ptr += tl.load(table_base_ptr + seq)
        slot_base, pooled_base = tl.load(slot_base_ptr + seq), tl.load(pooled_base_ptr + seq)
        sum_ptr = open_ptr + tl.load(state_ptr + seq) * _DIM + tl.arange(0, _DIM)
        total = tl.zeros([_DIM], tl.float32)
        if first_pos % block_tokens != 0:
            total = tl.load(sum_ptr)
        for i in range(count):
            block, offset = (first_pos + i) // block_tokens, (first_pos + i) % block_tokens
            slot = tl.load(slot_table_ptr + block).to(tl.int64)
            window_row = tl.where(slot < 0, -1, (slot_base + slot) * block_tokens + offset)
            host_row = tl.load(host_ids_ptr + row + i)
            stored, scale = stored_key(_load_key(keys, row + i), FP8)
            store_in_pages(window_ptr, window_row, stored, scale, FP8)
            store_in_pages(host[0], host_row, stored, scale, FP8)
            total += key_values(stored, scale, FP8)
            if offset == block_tokens - 1:
                mean, mean_scale = stored_key(mean_key(total, block_tokens), FP8)
                store_in_pages(pooled_ptr, pooled_base + block, mean, mean_scale, FP8)
                page = tl.where(host_row < 0, -1, host_row // _PAGE_TOKENS)
                store_packed(host[1], page, mean, mean_scale, FP8)
                total = tl.zeros([_DIM], tl.float32)
        tl.store(sum_ptr, total)


@triton.jit
def _load_key(keys, row) -> tl.tensor:
    keys_ptr, row_stride, dim_stride = keys
    return tl.load(keys_ptr + row * row_stride + tl.arange(0, _DIM) * dim_stride).to(tl.float32)


@triton.jit
def _note_inputs(
    place,
    query_ptr,
    weights,
    keys,
    QUERY_VALUES: tl.constexpr,
    QUERY_BLOCK: tl.constexpr,
    WEIGHTS: tl.constexpr,
    WEIGHTS_BLOCK: tl.constexpr,
):
    """Writes the largest magnitudes of a row's index inputs, those that are there."""
    largest_ptr, row, num_rows = place
    weights_ptr, weight_row_stride, head_stride = weights
    keys_ptr, key_row_stride, dim_stride = keys
    if query_ptr is not None:
        query_ptr += row * QUERY_VALUES
        _store_largest(largest_ptr, query_ptr, 1, QUERY_VALUES, QUERY_BLOCK)
    if weights_ptr is not None:
        weights_ptr += row * weight_row_stride
        _store_largest(largest_ptr + num_rows, weights_ptr, head_stride, WEIGHTS, WEIGHTS_BLOCK)
    keys_ptr += row * key_row_stride
    _store_largest(largest_ptr + 2 * num_rows, keys_ptr, dim_stride, _DIM, _DIM)


@triton.jit
def _store_largest(place_ptr, values_ptr, stride, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Writes the largest magnitude of COUNT values, of which uint8 ones are e4m3 codes."""
    most = tl.zeros([BLOCK], tl.int32)
    for start in tl.static_range(0, COUNT, BLOCK):
        place = start + tl.arange(0, BLOCK)
        values = tl.load(values_ptr + place * stride, mask=place < COUNT, other=0)
        if values.dtype == tl.uint8:
            values = from_e4m3(values)
        bits = values.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        most = tl.maximum(most, bits)  # as integers, in which NaN is above infinity
    tl.store(place_ptr, tl.max(most).to(tl.float32, bitcast=True))
