"""Round rows as a layout does, starting from another run's rows where these agree with our own.

A value that lies next to the border between two codes may round either way after the last bit of
noise in a hidden state, and one fp8 code is 6 % of a value. So that two runs can be compared at
fp32 accuracy, the reference may take the other run's rows before rounding; how far they were from
its own is counted.
"""

from dataclasses import dataclass

import torch

from hisparse_kernels.index_rows import pack_index_rows, quantize_index_q, unpack_index_rows
from hisparse_kernels.kv_rows import pack_kv_rows, unpack_kv_rows
from hisparse_kernels.layouts import index_layout, kv_layout


@dataclass(frozen=True)
class RowLayouts:
    """Which row layouts to imitate; "fp32" rounds nothing.

    Attributes:
        kv: layout of the KV rows.
        index: layout of the index rows; with "fp8" the queries are rounded too.
    """

    kv: str = "fp32"
    index: str = "fp32"


def larger_gap(worst: float, gaps: torch.Tensor) -> float:
    """The largest of `worst` and `gaps` (not empty); a NaN counts as infinite."""
    return max(worst, float(gaps.nan_to_num(nan=torch.inf, posinf=torch.inf).max()))


@dataclass
class RowAgreement:
    """How far another run's rows were from the reference's own, over all forwards of a layer.

    Attributes:
        worst_gap: largest difference of a value before rounding, relative to its row's largest.
        codes: fp8 codes of index queries compared.
        differing_codes: of these, not the same code.
    """

    worst_gap: float = 0.0
    codes: int = 0
    differing_codes: int = 0

    def adopt(self, own: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
        """`other` where there is one, its distance from `own` counted; both [..., dim] float."""
        if other is None:
            return own
        largest = own.abs().amax(dim=-1, keepdim=True).float()
        gaps = (own.float() - other.float()).abs() / largest.clamp(min=1e-30)
        self.worst_gap = larger_gap(self.worst_gap, gaps)
        return other.to(own.dtype)

    def adopt_codes(self, own: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
        """Like `adopt`, for e4m3 codes: counts those that differ."""
        if other is None:
            return own
        self.codes += own.numel()
        self.differing_codes += int((own.float() != other.float()).sum())
        return other


def rounded_kv(rows: torch.Tensor, layout: str) -> torch.Tensor:
    """[rows, 576] as they come back from storage in `layout`."""
    if layout == "fp32":
        return rows
    stored = kv_layout(layout)
    return unpack_kv_rows(pack_kv_rows(rows, stored), stored).to(rows.dtype)


def rounded_index_k(keys: torch.Tensor, layout: str) -> torch.Tensor:
    """[rows, 128] fp32 as they come back from storage in `layout`."""
    stored = index_layout(layout)
    return unpack_index_rows(pack_index_rows(keys, stored), stored)


def rounded_index_q(
    query: torch.Tensor, weights: torch.Tensor, layout: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and weights as they are scored: e4m3 codes and folded weights, or as they are."""
    if layout == "fp32":
        return query.float(), weights
    return quantize_index_q(query, weights)
