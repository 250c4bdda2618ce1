"""Write every position of each row's prefix."""

import torch
import triton
import triton.language as tl

_BLOCK_COLUMNS = 2048


def prefix_positions_triton(
    row_pos: torch.Tensor, k: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """See `prefix_positions`."""
    rows = len(row_pos)
    if out is None:
        out = row_pos.new_empty(rows, k)
    if rows:
        grid = rows, triton.cdiv(k, _BLOCK_COLUMNS)
        places = row_pos, row_pos.stride(0), k, out
        _prefix_positions_kernel[grid](*places, BLOCK=_BLOCK_COLUMNS, enable_fp_fusion=False)
    return out


@triton.jit
def _prefix_positions_kernel(pos_ptr, pos_stride, k, out_ptr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    last = tl.load(pos_ptr + row * pos_stride)
    tl.store(out_ptr + row * k + column, tl.where(column <= last, column, -1), mask=column < k)
