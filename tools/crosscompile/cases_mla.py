"""Cases of sparse attention."""

from collections.abc import Callable
from functools import partial

import torch

from hisparse_kernels.gpu.attention_call import AttentionCall
from hisparse_kernels.gpu.gluon.few_heads_mla import MOST_HEADS, few_heads_mla_gluon
from hisparse_kernels.gpu.gluon.many_heads_mla import many_heads_mla_gluon
from hisparse_kernels.gpu.gluon.many_heads_mla_sm100 import (
    compile_many_heads_mla_sm100,
    many_heads_mla_sm100_gluon,
)
from hisparse_kernels.gpu.leading_ids import leading_ids_triton
from hisparse_kernels.gpu.sparse_mla import sparse_mla_triton
from hisparse_kernels.layouts import KV_LAYOUTS, KvLayout
from hisparse_kernels.sparse_mla import AttentionOptions, decode_split_keys, split_workspace_size
from tools.crosscompile.case import Case, Expects
from tools.crosscompile.ptx import (
    AWAIT,
    EXPECT_BYTES,
    GATHER4,
    PRODUCTS_TELL,
    TMEM_LOAD,
    TMEM_STORE,
)
from tools.crosscompile.tensors import HOST_TOKENS, fp32, int32, kv_rows

_HEADS = (8, 16, 32, 64, 128)
_DECODE_ROWS = (1, 3, 128)
_PREFILL_ROWS = (4096,)


def cases() -> list[Case]:
    """bf16 queries with every layout and number of heads, and what the tests' model takes."""
    found = [
        Case("sparse_mla, fp32, 8 heads, fp32 queries", partial(_oracle, KV_LAYOUTS["fp32"])),
        Case("sparse_mla, fp8_ds_mla, 8 heads, fp32 queries", partial(_oracle, _FP8)),
        Case("sparse_mla, fp8_ds_mla, 64 heads, sink", partial(_with_sink, _FP8)),
        Case("leading_ids", _leading_ids),
    ]
    for layout in KV_LAYOUTS.values():
        for heads in _HEADS:
            # fp32 rows are for oracles, whose products stay in fp32
            expects = Expects(
                matrix_unit=heads >= 64 and layout.name != "fp32", mostly_wide=("kv_ptr",)
            )
            attend = partial(_attend, layout, heads, 2048, torch.bfloat16)
            name = f"sparse_mla, {layout.name}, {heads} heads"
            found += [
                Case(f"{name}, prefill", partial(attend, _PREFILL_ROWS, None), expects),
                Case(
                    f"{name}, decode",
                    partial(attend, _DECODE_ROWS, decode_split_keys(heads)),
                    expects,
                ),
            ]
    for name in ("fp8_ds_mla", "fp8"):
        found += [
            Case(
                f"sparse_mla, pipeline, {name}, splits of {split_keys or 'all'} keys",
                partial(_few_heads, KV_LAYOUTS[name], split_keys),
                # products of few heads; of codes a thread takes 16 bytes, of scales 4
                Expects(accumulator_columns=MOST_HEADS, mostly_wide=("kv_ptr",)),
                only=90,
            )
            for split_keys in (None, decode_split_keys(MOST_HEADS))
        ]
    for name in ("fp8_ds_mla", "fp8", "bf16"):
        found += [
            Case(
                f"sparse_mla, pipeline of 64 heads, {name}, splits of {split_keys or 'all'} keys",
                partial(_many_heads, KV_LAYOUTS[name], split_keys),
                Expects(accumulator_columns=512, mostly_wide=("kv_ptr",)),
                only=90,
            )
            for split_keys in (None, decode_split_keys(64))
        ]
    return found + _sm100_cases()


def _sm100_cases() -> list[Case]:
    """The body that sm_90 has not; its compiler and these checks are all that it has met."""
    expects = Expects(
        accumulator_columns=256 + 2 * 64,  # sums, and two stages of dots
        instructions=(GATHER4, TMEM_LOAD, TMEM_STORE, PRODUCTS_TELL, AWAIT, EXPECT_BYTES),
        unread=("kv_ptr",),
    )
    return [
        Case(
            f"sparse_mla, pipeline of {heads} heads, {name}, splits of {split_keys or 'all'} keys, "
            "tcgen05",
            partial(_sm100, KV_LAYOUTS[name], heads, split_keys),
            expects,
            only=100,
        )
        for name, heads, split_keys in (
            ("bf16", 64, None),
            ("bf16", 128, 256),
            ("fp8_ds_mla", 64, 256),
            ("fp8_ds_mla", 128, None),
            ("fp8", 128, 256),
        )
    ] + [
        Case(
            "sparse_mla, pipeline of 64 heads, bf16, warm-up, tcgen05",
            partial(compile_many_heads_mla_sm100, (64, KV_LAYOUTS["bf16"])),
            expects,
            only=100,
        )
    ]


_FP8 = KV_LAYOUTS["fp8_ds_mla"]


def _attend(
    layout: KvLayout,
    heads: int,
    topk: int,
    dtype: torch.dtype,
    row_counts: tuple[int, ...],
    split_keys: int | None,
) -> None:
    stored = kv_rows(HOST_TOKENS, layout)
    for rows in row_counts:
        query = torch.empty(rows, heads, layout.query_dim, dtype=dtype)
        out = torch.empty(rows, heads, layout.latent_dim, dtype=dtype), fp32(rows, heads)
        workspace = fp32(split_workspace_size(rows, heads, topk, layout, split_keys))
        sparse_mla_triton(
            query,
            stored,
            int32(rows, topk),
            layout,
            0.1352,
            AttentionOptions(split_keys=split_keys, out=out, workspace=workspace),
        )


def _few_heads(layout: KvLayout, split_keys: int | None) -> None:
    sizes = (1, 8, torch.bfloat16), (4096, 32, torch.float16)
    _run_pipeline(few_heads_mla_gluon, sizes, layout, split_keys)


def _many_heads(layout: KvLayout, split_keys: int | None) -> None:
    sizes = (1, 64, torch.bfloat16), (4096, 128, torch.bfloat16)
    _run_pipeline(many_heads_mla_gluon, sizes, layout, split_keys)


def _sm100(layout: KvLayout, heads: int, split_keys: int | None) -> None:
    sizes = ((4096, heads, torch.bfloat16),)
    _run_pipeline(many_heads_mla_sm100_gluon, sizes, layout, split_keys)


def _run_pipeline(
    attend: Callable[[AttentionCall], None],
    sizes: tuple[tuple[int, int, torch.dtype], ...],
    layout: KvLayout,
    split_keys: int | None,
) -> None:
    for rows, heads, dtype in sizes:
        size = split_workspace_size(rows, heads, 2048, layout, split_keys)
        attend(
            AttentionCall(
                torch.empty(rows, heads, layout.query_dim, dtype=dtype),
                kv_rows(HOST_TOKENS, layout),
                int32(rows, 2048),
                int32(rows),
                fp32(heads),
                layout,
                0.1352,
                split_keys or 2048,
                (torch.empty(rows, heads, layout.latent_dim, dtype=dtype), fp32(rows, heads)),
                fp32(size) if split_keys else None,
                (size // 2, size // 2),
            )
        )


def _oracle(layout: KvLayout) -> None:
    for topk in (64, 512):
        _attend(layout, 8, topk, torch.float32, (1, 4096), None)
        _attend(layout, 8, topk, torch.float32, (1, 3), 64)


def _with_sink(layout: KvLayout) -> None:
    for rows in (3, 4096):
        query = torch.empty(rows, 64, layout.query_dim, dtype=torch.bfloat16)
        sparse_mla_triton(
            query,
            kv_rows(HOST_TOKENS, layout),
            int32(rows, 2048),
            layout,
            0.1352,
            AttentionOptions(
                sink=fp32(64),
                valid_counts=int32(rows),
                split_keys=decode_split_keys(64) if rows == 3 else None,
            ),
        )


def _leading_ids() -> None:
    for rows in (*_DECODE_ROWS, *_PREFILL_ROWS):
        leading_ids_triton(int32(rows, 2048), int32(rows))
