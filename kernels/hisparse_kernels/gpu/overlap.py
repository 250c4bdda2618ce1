"""Let a kernel's programs start while the kernel before it ends (programmatic dependent launch).

A kernel launched with `overlap_options` calls `begin_overlapped` before it reads or writes anything
that another kernel may have written or read.
"""

import triton
import triton.language as tl

from hisparse_kernels.gpu.interpreter import interpreting

_OVERLAPS = tl.constexpr(not interpreting())


def overlap_options() -> dict[str, bool]:
    """Launch options; from sm_90 on."""
    return {"launch_pdl": True} if _OVERLAPS.value else {}


@triton.jit
def begin_overlapped() -> None:
    """Lets the next kernel's programs start, and waits until the kernel before is done."""
    if _OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
