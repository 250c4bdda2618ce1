"""Where a run writes its results, and in which base."""

from typing import Literal

import torch

from hisparse_sidecar.attention.contract import PlanContract
from hisparse_sidecar.tensor_checks import check_place

_LOG2_E = 1.4426950408889634


def result_places(
    contract: PlanContract,
    query: torch.Tensor,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Output [rows, heads, 512] and lse [rows, heads] fp32: the caller's places, or a new one.

    None = the caller has none: attention allocates both.

    Raises:
        InvalidArgument: a place has another shape, dtype or device, or gaps.
    """
    if out is None and lse is None:
        return None
    shape = len(query), contract.num_heads
    if out is None:
        out = query.new_empty(*shape, contract.head_dim_ckv)
    else:
        check_place("out", out, (*shape, contract.head_dim_ckv), query.dtype, query.device)
    if lse is None:
        lse = query.new_empty(shape, dtype=torch.float32)
    else:
        check_place("lse", lse, shape, torch.float32, query.device)
    return out, lse


def to_base(base: Literal["e", 2] | None, lse: torch.Tensor) -> None:
    """Changes a natural logarithm to that base in place; None = nobody looks at it."""
    if base == 2:
        lse.mul_(_LOG2_E)
