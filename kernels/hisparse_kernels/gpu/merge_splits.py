"""Finish sparse attention: merge a row's splits in ascending order, add the sink, divide."""

import triton
import triton.language as tl

from hisparse_kernels.gpu.mla_tile import rounded_for

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def store_results(
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
    column,
    LATENT: tl.constexpr,
) -> None:
    """Stores some columns of some heads: the outputs, or the split's part if there is a workspace.

    `sums` are weighted values [heads, columns], `most` the largest logits in base 2 and `total` the
    sums of weights [heads]; `row` is int64.
    """
    valid = head < heads
    output = row * heads + head
    if workspace_ptr is None:
        tl.store(lse_ptr + output, _lse_of(most, total), mask=valid)
        # a division by each of the sums would take registers that 64 heads do not leave
        factor = 1.0 / _denominator(most, total, sink_ptr, head, valid)
        out_at = output[:, None] * LATENT + column[None, :]
        tl.store(
            out_ptr + out_at, rounded_for(sums * factor[:, None], out_ptr), mask=valid[:, None]
        )
    else:
        part = output * tl.num_programs(1) + split
        tl.store(workspace_ptr + most_at + part, most, mask=valid)
        tl.store(workspace_ptr + total_at + part, total, mask=valid)
        # of a split without a key the merge reads no sums
        held = valid & (total != 0)
        tl.store(workspace_ptr + part[:, None] * LATENT + column[None, :], sums, mask=held[:, None])


@triton.jit(do_not_specialize=["most_at", "total_at", "heads", "splits"])
def merge_splits_kernel(
    workspace_ptr,
    most_at,
    total_at,
    sink_ptr,
    out_ptr,
    lse_ptr,
    heads,
    splits,
    LATENT: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
) -> None:
    """One program finishes some columns of one head of one row: output `row * heads + head`."""
    output = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first_part = output * splits
    most_ptr = workspace_ptr + most_at + first_part
    total_ptr = workspace_ptr + total_at + first_part
    sums_ptr = workspace_ptr + first_part * LATENT
    most = float("-inf")
    for first in range(0, splits, BLOCK_SPLITS):
        split = first + tl.arange(0, BLOCK_SPLITS)
        found = tl.load(most_ptr + split, mask=split < splits, other=float("-inf"))
        most = tl.maximum(most, tl.max(found, 0))
    base = tl.where(most == float("-inf"), 0.0, most)
    sums = tl.zeros([COLUMNS], tl.float32)
    total = 0.0
    for split in tl.range(0, splits, loop_unroll_factor=8):
        part_total = tl.load(total_ptr + split)
        factor = tl.exp2(tl.load(most_ptr + split) - base)
        total += part_total * factor
        part = tl.load(sums_ptr + tl.cast(split, tl.int64) * LATENT + column)
        # else its sums were not written; compared as a block, for the interpreter's sake
        held = tl.zeros([COLUMNS], tl.float32) + part_total != 0
        sums += tl.where(held, part, 0.0) * factor
    if tl.program_id(1) == 0:
        tl.store(lse_ptr + output, _lse_of(most, total))
    factor = 1.0 / _denominator(most, total, sink_ptr, output % heads, True)
    tl.store(out_ptr + output * LATENT + column, rounded_for(sums * factor, out_ptr))


@triton.jit
def _denominator(most, total, sink_ptr, head, valid):
    """Sum of weights and sink; 1 where there is no key, so that the output is 0."""
    if sink_ptr is not None:
        base = tl.where(most == float("-inf"), 0.0, most)
        sink = tl.load(sink_ptr + head, mask=valid, other=0.0) * _LOG2_E
        # a sink 2**126 times the best key leaves nothing of it: no overflow is needed
        total_and_sink = total + tl.exp2(tl.minimum(sink - base, 126.0))
    else:
        total_and_sink = total
    return tl.where(total == 0, 1.0, total_and_sink)


@triton.jit
def _lse_of(most, total):
    """Natural log of the sum of exponentials; -inf of nothing."""
    return (most + tl.log2(tl.where(total == 0, 1.0, total))) * _LN_2
