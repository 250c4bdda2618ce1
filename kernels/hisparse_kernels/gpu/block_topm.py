"""Keep the best blocks of each row, always the first and the newest."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.select import best_columns, row_options


def block_topm_triton(
    block_logits: torch.Tensor,
    newest_block: torch.Tensor,
    num_kept: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `block_topm`. One program for each row."""
    rows, num_blocks = block_logits.shape
    if out is None:
        out = newest_block.new_empty(rows, num_kept)
    if rows:
        _block_topm_kernel[(rows,)](
            block_logits,
            *block_logits.stride(),
            num_blocks,
            newest_block.contiguous(),
            num_kept,
            out,
            **row_options(num_blocks),
        )
    return out


@triton.jit(do_not_specialize=["num_blocks", "num_kept"])
def _block_topm_kernel(
    logits_ptr,
    row_stride,
    column_stride,
    num_blocks,
    newest_ptr,
    num_kept,
    out_ptr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    newest = tl.load(newest_ptr + row)
    best_columns(
        logits_ptr + row * row_stride,
        column_stride,
        tl.minimum(newest + 1, num_blocks),
        newest,
        num_kept,
        out_ptr + row * num_kept,
        True,
        BLOCK,
        ONE_BLOCK,
    )
