"""Sparse attention with many heads on sm_100: gather4 brings rows, tcgen05 multiplies in TMEM.

Compiled and its PTX checked, never run: there was no such GPU. Its arithmetic is that of
`many_heads_mla`, which runs on sm_90: the same functions (`head_rows`, `mla_rows`, `mla_tiles`).

A program of up to 64 heads sums all 512 latent dims: 64 x 512 fp32 take 256 of TMEM's 512 columns.
Sums of 128 heads would take all 512 and leave no room for dots: two programs share them, each with
half of the latent dims, and both make all dots. Those are 1.5 times the products that are needed,
but on all 128 lanes: two programs of 64 heads would make no more than are needed on half of them. A
pair of CTAs could share rows and dots; its barriers across CTAs are nothing that sm_90 could test.
"""

from typing import Any

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from hisparse_kernels.gpu.attention_call import AttentionCall, warm_up
from hisparse_kernels.gpu.gluon.api import barrier
from hisparse_kernels.gpu.gluon.gathered_tiles import (
    dequantise_tiles,
    gather_tiles,
    gathered_barriers,
    gathered_places,
    row_descriptors,
)
from hisparse_kernels.gpu.gluon.head_rows import store_weight_sums
from hisparse_kernels.gpu.gluon.mla_lse import store_lse
from hisparse_kernels.gpu.gluon.mla_rows import last_key
from hisparse_kernels.gpu.gluon.mla_tiles import HALF
from hisparse_kernels.gpu.gluon.tmem_mla import (
    attend_tiles,
    dims_of,
    load_queries,
    multiply_tiles,
    product_barriers,
    product_places,
    store_sums,
)
from hisparse_kernels.layouts import KvLayout

_KEYS = 64
_LATENT = gl.constexpr(2 * HALF.value)
# Warps that multiply, have rows brought, and dequantise them; and, by heads of a program, registers
# of a thread of each: the others share the rest. With these Triton 3.6.0 and 3.9.0 spill nothing.
_MULTIPLY, _GATHER, _DEQUANTISE = (gl.constexpr(n) for n in (1, 4, 4))
_COPY_REGISTERS = (128, 128)
_CODE_REGISTERS = {64: (96, 80, 144), 128: (96, 80, 128)}


def many_heads_mla_sm100_gluon(call: AttentionCall) -> None:
    """Attends as `sparse_mla` does, on sm_100, with queries of 16 bits and rows of fp8 or bf16."""
    options = _options(call.query.shape[1], call.layout)
    num_programs = triton.cdiv(call.query.shape[1], options["HEADS"]) * options["SHARES"]
    descriptors = row_descriptors(call.kv_rows, call.layout)
    call.launch(_many_heads_sm100_kernel, num_programs, **descriptors, **options)


def compile_many_heads_mla_sm100(variant: tuple[int, KvLayout]) -> None:
    """Compiles the kernel for so many heads; raises whatever the compiler raises."""
    heads, layout = variant
    rows = torch.empty(1, layout.row_bytes, dtype=torch.uint8)  # anywhere: nothing is launched
    options = row_descriptors(rows, layout) | _options(heads, layout)
    warm_up(_many_heads_sm100_kernel, heads, layout, 256, **options)


def _options(heads: int, layout: KvLayout) -> dict[str, Any]:
    block_heads = 64 if heads <= 64 else 128
    coded = layout.name != "bf16"
    return {
        "CODED": coded,
        "ROPE": layout.rope_dim,
        "HEADS": block_heads,
        "SHARES": layout.latent_dim // int(dims_of(block_heads)),
        "KEYS": _KEYS,
        "REGISTERS": _CODE_REGISTERS[block_heads] if coded else _COPY_REGISTERS,
        "num_warps": 4,
        "enable_fp_fusion": True,
    }


@gluon.jit(do_not_specialize=["most_at", "total_at", "heads", "topk", "split_keys"])
def _many_heads_sm100_kernel(
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
    latent_rows,
    rope_rows,
    CODED: gl.constexpr,
    ROPE: gl.constexpr,
    HEADS: gl.constexpr,
    SHARES: gl.constexpr,
    KEYS: gl.constexpr,
    REGISTERS: gl.constexpr,
):
    """One program attends with a block of heads of one row to one split of its keys.

    Of `SHARES` programs each sums a share of the latent dims, and all store the same lse.
    """
    head_blocks = (heads + HEADS - 1) // HEADS
    share = gl.program_id(0) % SHARES
    row = (gl.program_id(0) // (SHARES * head_blocks)).to(gl.int64)
    first_head = gl.program_id(0) // SHARES % head_blocks * HEADS
    first = gl.program_id(1) * split_keys
    ids_ptr += row * topk
    end = last_key(ids_ptr, counts_ptr, row, first, gl.minimum(first + split_keys, topk))
    strides = (query_head_stride, query_dim_stride)
    query_ptr += row * query_row_stride
    products, barriers = product_places(HEADS, KEYS), product_barriers()
    queries = load_queries(query_ptr, first_head, heads, strides, HEADS, ROPE)
    places, tile_barriers = gathered_places(KEYS, ROPE), gathered_barriers(CODED)
    hopper.fence_async_shared()
    barrier()
    keys = (ids_ptr, first, end)
    memory, told = (queries, places, products), (tile_barriers, barriers)
    rows, maps = (kv_ptr, kv_row_stride), (latent_rows, rope_rows)
    if CODED:
        most, total = gl.warp_specialize(
            [
                (attend_tiles, (products, barriers, keys, scale_log2, HEADS, KEYS)),
                (multiply_tiles, (memory, told, keys, share, ROPE, HEADS, KEYS)),
                (gather_tiles, (places, tile_barriers, maps, keys, CODED, ROPE, KEYS)),
                (dequantise_tiles, (places, tile_barriers, rows, keys, KEYS)),
            ],
            [_MULTIPLY, _GATHER, _DEQUANTISE],
            [REGISTERS[0], REGISTERS[1], REGISTERS[2]],
        )
    else:
        most, total = gl.warp_specialize(
            [
                (attend_tiles, (products, barriers, keys, scale_log2, HEADS, KEYS)),
                (multiply_tiles, (memory, told, keys, share, ROPE, HEADS, KEYS)),
                (gather_tiles, (places, tile_barriers, maps, keys, CODED, ROPE, KEYS)),
            ],
            [_MULTIPLY, _GATHER],
            [REGISTERS[0], REGISTERS[1]],
        )
    _store_results(
        (workspace_ptr, most_at, total_at),
        (out_ptr, lse_ptr),
        sink_ptr,
        (most, total, products[1]),
        (row, first_head, heads, share),
    )


@gluon.jit
def _store_results(workspace, results, sink_ptr, found, where) -> None:
    """Stores the outputs, or what `merge_splits_kernel` merges of them."""
    workspace_ptr, most_at, total_at = workspace
    row, first_head, heads, share = where
    most, total, sums = found
    num_heads: gl.constexpr = sums.shape[0]
    head = first_head + gl.arange(0, num_heads, most.type.layout)
    real = head < heads
    output = row * heads + head
    first_dim = share * sums.shape[1]
    if workspace_ptr is None:
        divisor = store_lse(results[1] + output, sink_ptr, most, total, head, heads)
        row_ptr = results[0] + (output * _LATENT + first_dim)
        store_sums(row_ptr, sums, 1.0 / divisor, total, real)
    else:
        part = output * gl.num_programs(1) + gl.program_id(1)
        store_weight_sums(workspace_ptr, part, (most_at, total_at), most, total, real)
        row_ptr = workspace_ptr + (part * _LATENT + first_dim)
        one = gl.full([num_heads], 1.0, gl.float32, most.type.layout)
        store_sums(row_ptr, sums, one, total, real & (total != 0))  # else the merge reads none
