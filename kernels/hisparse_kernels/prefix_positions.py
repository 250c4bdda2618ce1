"""Every position of a row's prefix: the top-k of a prefix that is no longer than k."""

import torch

from hisparse_kernels.shapes import Shapes, check_at_least


def prefix_positions(
    row_pos: torch.Tensor, k: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Positions up to each row's own: what any top-k of at most k scored tokens comes to.

    Args:
        row_pos: [rows] int32, position of the row; -1 = padding row.
        k: columns of the result; a row's own position must be below it.
        out: [rows, k] int32, contiguous, to write to and return; None = allocate.

    Returns:
        [rows, k] int32: 0, 1, ... up to the row's position, then -1.
    """
    shapes = Shapes()
    shapes.check("row_pos", row_pos, "rows", torch.int32)
    check_at_least("k", k, 1)
    if out is not None:
        shapes.check_packed("out", out, f"rows {k}", torch.int32)
    if row_pos.is_cuda:
        from hisparse_kernels.gpu.prefix_positions import prefix_positions_triton

        return prefix_positions_triton(row_pos, k, out)
    return prefix_positions_ref(row_pos, k, out)


def prefix_positions_ref(
    row_pos: torch.Tensor, k: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """See `prefix_positions`; plain PyTorch."""
    columns = torch.arange(k, dtype=torch.int32, device=row_pos.device)
    positions = torch.where(columns <= row_pos[:, None], columns, -1)
    return positions if out is None else out.copy_(positions)
