"""Cases of the Gluon pipelines."""

from functools import partial

import torch

from hisparse_kernels.gpu.gluon.index_logits import index_logits_gluon
from hisparse_kernels.gpu.gluon.refine_logits import refine_logits_gluon
from hisparse_kernels.layouts import INDEX_LAYOUTS
from tools.crosscompile.case import Case, Expects
from tools.crosscompile.tensors import (
    BLOCK_TOKENS,
    HOST_TOKENS,
    ROWS,
    fp32,
    index_pages,
    index_rows,
    int32,
)

_FP8 = INDEX_LAYOUTS["fp8"]
_MAX_LOGITS = 1 << 28  # bytes of one call's logits
_KEPT = 64


def cases() -> list[Case]:
    """Both ops with both numbers of heads; two accumulators, of 64 columns or of one row's."""
    found = []
    for heads in (32, 64):
        found += [
            Case(
                f"index_logits, pipeline, {heads} heads",
                partial(_score_packed, heads),
                Expects(accumulator_columns=2 * 64, wide=("query_ptr",)),
            )
        ] + [
            Case(
                f"refine_logits, pipeline, {heads} heads, blocks of {tokens}, {columns}",
                partial(_refine, heads, tokens, write_all),
                Expects(accumulator_columns=2 * heads, wide=("query_ptr", "codes_ptr")),
            )
            for tokens in (BLOCK_TOKENS, 3 * BLOCK_TOKENS)
            for columns, write_all in (("own columns", False), ("all columns", True))
        ]
    return found


def _queries(rows: int, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(rows, heads, 128, dtype=torch.float8_e4m3fn), fp32(rows, heads)


def _score_packed(heads: int) -> None:
    for rows in ROWS:
        keys = min(_MAX_LOGITS // 4 // rows, HOST_TOKENS * 4)
        index_logits_gluon(
            *_queries(rows, heads),
            index_rows(keys, _FP8),
            int32(rows),
            int32(rows),
            _FP8,
            out=fp32(rows, keys),
        )


def _refine(heads: int, block_tokens: int, write_all: bool) -> None:
    for rows in ROWS:
        refine_logits_gluon(
            *_queries(rows, heads),
            index_pages(HOST_TOKENS * 4, _FP8),
            int32(rows, _KEPT),
            int32(rows, _KEPT),
            int32(rows),
            block_tokens,
            _FP8,
            fp32(rows, _KEPT * block_tokens),
            write_all=write_all,
        )
