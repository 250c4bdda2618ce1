"""Sparse attention in Triton: gather the listed rows tile by tile, online softmax, merge splits."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.attention_call import AttentionCall
from hisparse_kernels.gpu.exact_mla import BLOCK_COLUMNS, attend_exactly_kernel
from hisparse_kernels.gpu.interpreter import interpreting
from hisparse_kernels.gpu.listed_often import dequantised, is_listed_often
from hisparse_kernels.gpu.merge_splits import merge_splits_kernel, store_results
from hisparse_kernels.gpu.mla_tile import (
    key_range,
    key_rows,
    load_codes,
    load_query,
    load_rope,
    load_values,
    softmax_step,
    to_bf16,
)
from hisparse_kernels.gpu.pipelines import PipelineOf, attention_pipeline_of
from hisparse_kernels.layouts import KvLayout
from hisparse_kernels.sparse_mla import (
    NO_OPTIONS,
    AttentionOptions,
    empty_results,
    split_workspace_size,
)

_MAX_BLOCK_SPLITS = 64
_MANY_OUTPUTS = 256  # of fewer, columns are shared out so that they fill a GPU
_FEW_COLUMNS = 128
# By heads of one program and layout: keys of a tile, warps, stages. The fastest on an H100 of those
# that fit the shared memory of sm_90 and sm_100 with Triton 3.6 and 3.9, and spill next to nothing.
_TILES = {
    16: {"fp8_ds_mla": (32, 4, 3), "fp8": (32, 4, 3), "bf16": (64, 4, 3)},
    32: {"fp8_ds_mla": (32, 8, 3), "fp8": (32, 8, 3), "bf16": (64, 8, 3)},
    64: {"fp8_ds_mla": (64, 8, 2), "fp8": (32, 8, 2), "bf16": (64, 8, 2)},
}
_WIDE_BF16_KEYS_SM100 = 32  # of 64 keys Triton 3.6 keeps two copies, which need 345 KiB


def sparse_mla_triton(
    query: torch.Tensor,
    kv_rows: torch.Tensor,
    row_ids: torch.Tensor,
    layout: KvLayout,
    softmax_scale: float,
    options: AttentionOptions = NO_OPTIONS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `sparse_mla`. One program for a row, a block of its heads, and a split of its keys.

    Many queries over few fp8 rows, as in prefill, allocate room for the rows in bf16: the bits are
    the same.
    """
    inputs = query, kv_rows, row_ids, layout, softmax_scale, options
    return attend_rows(attention_pipeline_of, bf16_rows_do(query, layout), *inputs)


def attend_rows(
    pipeline_of: PipelineOf,
    may_dequantise: bool,
    query: torch.Tensor,
    kv_rows: torch.Tensor,
    row_ids: torch.Tensor,
    layout: KvLayout,
    softmax_scale: float,
    options: AttentionOptions,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `sparse_mla` says, by what `pipeline_of` finds for it or else in Triton; merges splits.

    Rows that are listed often are dequantised first, where rows in bf16 would give the same bits:
    `may_dequantise`.
    """
    rows, heads, _ = query.shape
    out = options.out or empty_results(query, layout)
    if rows == 0 or heads == 0:
        return out
    if may_dequantise and is_listed_often(kv_rows, row_ids):
        kv_rows, layout = dequantised(kv_rows, layout)
    call = _call_of(query, kv_rows, row_ids, layout, softmax_scale, options, out)
    (pipeline_of(query, kv_rows, layout) or _attend)(call)
    if call.workspace is not None:
        _merge_splits(call)
    return out


def _call_of(
    query: torch.Tensor,
    kv_rows: torch.Tensor,
    row_ids: torch.Tensor,
    layout: KvLayout,
    softmax_scale: float,
    options: AttentionOptions,
    out: tuple[torch.Tensor, torch.Tensor],
) -> AttentionCall:
    """The call, with a workspace where it has more than one split."""
    (rows, heads, _), topk = query.shape, row_ids.shape[1]
    split_keys = min(options.split_keys or topk, topk)
    workspace, splits = options.workspace, triton.cdiv(topk, split_keys)
    if splits == 1:
        workspace = None
    elif workspace is None:
        size = split_workspace_size(rows, heads, topk, layout, split_keys)
        workspace = query.new_empty(size, dtype=torch.float32)
    parts, counts, sink = rows * heads * splits, options.valid_counts, options.sink
    return AttentionCall(
        query,
        kv_rows,
        row_ids.contiguous(),
        None if counts is None else counts.contiguous(),
        None if sink is None else sink.contiguous(),
        layout,
        softmax_scale,
        split_keys,
        out,
        workspace,
        (parts * layout.latent_dim, parts * (layout.latent_dim + 1)),
    )


def _merge_splits(call: AttentionCall) -> None:
    outputs, latent_dim = call.query.shape[0] * call.query.shape[1], call.layout.latent_dim
    splits = triton.cdiv(call.row_ids.shape[1], call.split_keys)
    columns = latent_dim if outputs > _MANY_OUTPUTS else _FEW_COLUMNS
    merge_splits_kernel[outputs, latent_dim // columns](
        call.workspace,
        *call.places,
        call.sink,
        *call.out,
        call.query.shape[1],
        splits,
        LATENT=latent_dim,
        COLUMNS=columns,
        BLOCK_SPLITS=min(triton.next_power_of_2(splits), _MAX_BLOCK_SPLITS),
        enable_fp_fusion=True,
    )


def _attend(call: AttentionCall) -> None:
    layout = call.layout
    kernel, num_programs, tiles = _launch_of(call.query, layout)
    call.launch(
        kernel,
        num_programs,
        LAYOUT=layout.name.removesuffix("_ds_mla"),
        LATENT=layout.latent_dim,
        ROPE=layout.rope_dim,
        enable_fp_fusion=True,
        **tiles,
    )


def _launch_of(
    query: torch.Tensor, layout: KvLayout
) -> tuple[triton.JITFunction, int, dict[str, int]]:
    """Kernel, its programs for one row and split, and its tiles: by dtype, layout and heads."""
    heads = query.shape[1]
    if query.dtype == torch.float32 or layout.name == "fp32":
        head_blocks = triton.cdiv(heads, 16)
        num_programs = head_blocks * (layout.latent_dim // BLOCK_COLUMNS)
        return attend_exactly_kernel, num_programs, {"num_warps": 4, "num_stages": 1}
    block_heads = _heads_of_block(heads)
    keys, num_warps, num_stages = _tile_of(block_heads, layout.name)
    tiles = {"BLOCK_H": block_heads, "BLOCK_K": keys}
    options = {"num_warps": num_warps, "num_stages": num_stages}
    return _attend_kernel, triton.cdiv(heads, block_heads), tiles | options


def bf16_rows_do(query: torch.Tensor, layout: KvLayout) -> bool:
    """Whether rows in bf16 would give the bits of these fp8 rows: of the same tiles."""
    if query.dtype == torch.float32 or layout.name != "fp8_ds_mla":
        return False
    block_heads = _heads_of_block(query.shape[1])
    fp8_keys, bf16_keys = (_tile_of(block_heads, name)[0] for name in (layout.name, "bf16"))
    return fp8_keys == bf16_keys


def _heads_of_block(heads: int) -> int:
    return int(min(max(triton.next_power_of_2(heads), 16), 64))


def _tile_of(block_heads: int, layout: str) -> tuple[int, int, int]:
    """Keys, warps and stages of a tile."""
    keys, num_warps, num_stages = _TILES[block_heads][layout]
    if (block_heads, layout) == (64, "bf16") and not interpreting() and _arch() >= 100:
        keys = _WIDE_BF16_KEYS_SM100
    return keys, num_warps, num_stages


def _arch() -> int:
    """Compute capability that kernels are compiled for: 90, 100, ..."""
    return int(triton.runtime.driver.active.get_current_target().arch)


@triton.jit(do_not_specialize=["most_at", "total_at", "heads", "topk", "split_keys"])
def _attend_kernel(
    query_ptr,
    kv_ptr,
    ids_ptr,
    counts_ptr,
    sink_ptr,
    workspace_ptr,
    most_at,
    total_at,
    out_ptr,
    lse_ptr,
    heads,
    topk,
    split_keys,
    query_row_stride,
    query_head_stride,
    query_dim_stride,
    kv_row_stride,
    scale_log2,
    LAYOUT: tl.constexpr,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program attends with a block of heads of one row to one split of its keys."""
    head_blocks = tl.cdiv(heads, BLOCK_H)
    row = (tl.program_id(0) // head_blocks).to(tl.int64)
    split = tl.program_id(1)
    head = tl.program_id(0) % head_blocks * BLOCK_H + tl.arange(0, BLOCK_H)
    head_ptr = query_ptr + row * query_row_stride + head.to(tl.int64) * query_head_stride
    latent_q = to_bf16(load_query(head_ptr, head < heads, query_dim_stride, 0, LATENT))
    if ROPE > 0:
        rope_q = to_bf16(load_query(head_ptr, head < heads, query_dim_stride, LATENT, ROPE))

    row_ids_ptr = ids_ptr + row * topk
    first, end = key_range(row_ids_ptr, counts_ptr, row, split, topk, split_keys)
    most = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    sums = tl.zeros([BLOCK_H, LATENT], tl.float32)
    # 64 heads fill the registers: what is moved out of their loop would spill
    for start in tl.range(first, end, BLOCK_K, disable_licm=BLOCK_H == 64):
        row_ptr, valid = key_rows(kv_ptr, row_ids_ptr, start, end, kv_row_stride, BLOCK_K)
        if LAYOUT == "fp8":
            latent = to_bf16(load_codes(row_ptr, valid, LATENT))
        else:
            latent = to_bf16(load_values(row_ptr, valid, 0, LATENT, tl.bfloat16))
        dots = tl.dot(latent_q, tl.trans(latent))
        if ROPE > 0:
            rope = to_bf16(load_rope(row_ptr, valid, LAYOUT, LATENT, ROPE))
            dots = tl.dot(rope_q, tl.trans(rope), dots)
        logits = tl.where(valid[None, :], dots * scale_log2, float("-inf"))
        weights, factor, most, total = softmax_step(logits, most, total)
        sums = tl.dot(to_bf16(weights), latent, sums * factor[:, None])
    store_results(
        sums,
        most,
        total,
        workspace_ptr,
        most_at,
        total_at,
        sink_ptr,
        out_ptr,
        lse_ptr,
        row,
        split,
        head,
        heads,
        tl.arange(0, LATENT),
        LATENT,
    )
