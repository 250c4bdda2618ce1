"""Top-k of rows that one program cannot hold: the best of runs, then the best of these."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.in_place import load_in_place
from hisparse_kernels.gpu.kth_score import kth_score
from hisparse_kernels.gpu.overlap import begin_overlapped, overlap_options
from hisparse_kernels.gpu.select import MOST_IN_REGISTERS, pad_columns, value_of
from hisparse_kernels.gpu.write_taken import tile_columns, write_taken

_RUN = MOST_IN_REGISTERS
_WARPS = 8


def grows_a_tree(num_columns: int, k: int) -> bool:
    """Whether `topk_by_tree` takes such rows: longer than a run, of which a part is kept."""
    return num_columns > _RUN and 2 * k <= _RUN


def topk_by_tree(
    logits: torch.Tensor,
    k: int,
    block_ids: torch.Tensor | None,
    named: torch.Tensor | None,
    block_tokens: int,
    out: torch.Tensor,
) -> None:
    """`topk` of at least one row, and with `block_ids` and `named` as `topk_positions_triton`.

    A level reads runs of 8192 columns and keeps the k best of each: as many programs as runs. What
    they keep, a part of k / 8192 of the logits, is allocated. `grows_a_tree` must hold.
    """
    rows, entries = logits.shape
    kept = None
    while entries > _RUN:
        runs = triton.cdiv(entries, _RUN)
        level = out.new_empty(rows, runs * k)
        _best_of_runs(logits, kept, entries, k, None, None, 1, level)
        kept, entries = level, runs * k
    _best_of_runs(logits, kept, entries, k, block_ids, named, block_tokens, out)


def _best_of_runs(
    logits: torch.Tensor,
    columns: torch.Tensor | None,
    entries: int,
    k: int,
    block_ids: torch.Tensor | None,
    named: torch.Tensor | None,
    block_tokens: int,
    out: torch.Tensor,
) -> None:
    rows, runs = len(logits), triton.cdiv(entries, _RUN)
    _best_of_runs_kernel[rows, runs](
        logits,
        *logits.stride(),
        columns,
        entries,
        block_ids,
        named,
        0 if block_ids is None else block_ids.shape[1],
        k,
        out,
        BLOCK_TOKENS=block_tokens,
        BLOCK=_RUN,
        WARPS=_WARPS,
        num_warps=_WARPS,
        enable_fp_fusion=False,
        **overlap_options(),
    )


@triton.jit(do_not_specialize=["num_ids", "k"])
def _best_of_runs_kernel(
    logits_ptr,
    row_stride,
    column_stride,
    columns_ptr,
    num_entries,
    ids_ptr,
    named_ptr,
    num_ids,
    k,
    out_ptr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    WARPS: tl.constexpr,
):
    begin_overlapped()
    row, run = tl.program_id(0).to(tl.int64), tl.program_id(1)
    out_ptr += (row * tl.num_programs(1) + run) * k
    logits_ptr += row * row_stride
    entry = run * BLOCK + tile_columns(BLOCK, WARPS)
    end = num_entries
    if ids_ptr is not None:
        # of a row without blocks nobody has written the logits
        end = tl.where(tl.load(ids_ptr + row * num_ids) < 0, 0, num_entries)
        named_ptr += row * num_ids
    inside = entry < end
    if columns_ptr is None:
        column = entry
        column_ptr = logits_ptr + column.to(tl.int64) * column_stride
        scores = tl.load(column_ptr, mask=inside, other=float("-inf"))
    else:
        column = tl.load(columns_ptr + row * num_entries + entry, mask=inside, other=-1)
        inside = column >= 0
        column_ptr = logits_ptr + column.to(tl.int64) * column_stride
        scores = load_in_place(column_ptr, inside, float("-inf"))
    bound, need, kept = kth_score(scores, None, k, None)
    write_taken(scores, value_of(named_ptr, column, inside, BLOCK_TOKENS), bound, need, out_ptr)
    pad_columns(kept, k, out_ptr, BLOCK)
