"""Write new KV rows to their host rows."""

import torch

from hisparse_kernels.shapes import Shapes


def spill(rows: torch.Tensor, dst_row_ids: torch.Tensor, host_rows: torch.Tensor) -> None:
    """Copies rows to the host, in place.

    Args:
        rows: [n, row_bytes] uint8, stored KV rows.
        dst_row_ids: [n] int64, row of `host_rows` for each, distinct; -1 = skip.
        host_rows: [num_pages * 64, row_bytes] uint8, written.
    """
    shapes = Shapes()
    shapes.check("rows", rows, "n row_bytes", torch.uint8)
    shapes.check("dst_row_ids", dst_row_ids, "n", torch.int64)
    shapes.check_packed("host_rows", host_rows, "num_host_rows row_bytes", torch.uint8)
    if rows.is_cuda:
        from hisparse_kernels.gpu.spill import spill_triton

        spill_triton(rows, dst_row_ids, host_rows)
        return
    spill_ref(rows, dst_row_ids, host_rows)


def spill_ref(rows: torch.Tensor, dst_row_ids: torch.Tensor, host_rows: torch.Tensor) -> None:
    kept = dst_row_ids >= 0
    host_rows.index_copy_(0, dst_row_ids[kept], rows[kept])
