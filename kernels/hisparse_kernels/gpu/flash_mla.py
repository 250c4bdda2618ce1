"""FlashMLA's kernel for prefill, where it is installed and does the same work faster.

Measured on an H100 with lists of 2048 rows (benchmarks/results, suite `ops`): 4096 queries of 64 or
128 heads take it 0.4 of the time that the Triton body takes. It attends to a row in one go, so a
row's bits depend on the row alone, as long as the choice does not look at the number of rows. Its
decode kernel is not called: it splits a row's keys by the batch.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from hisparse_kernels.gpu.listed_often import dequantised
from hisparse_kernels.gpu.sparse_mla import sparse_mla_triton
from hisparse_kernels.layouts import KvLayout

_LOG = logging.getLogger(__name__)
_HEADS = (64, 128)
_KEYS = 128  # lists are of a multiple of them
_MOST_UNPACKED = 1 << 18  # fp8 rows, 300 MB in bf16: the stage of a prefill, not a pool
_HOPPER = (9, 0)


def sparse_mla_fastest(
    query: torch.Tensor,
    kv_rows: torch.Tensor,
    row_ids: torch.Tensor,
    layout: KvLayout,
    softmax_scale: float,
    sink: torch.Tensor | None = None,
    valid_counts: torch.Tensor | None = None,
    split_keys: int | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
    workspace: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `sparse_mla`: by FlashMLA what it does, by Triton all else.

    FlashMLA allocates its results: `out` gets a copy of them.
    """
    plain = sink is None and valid_counts is None and split_keys is None
    attend = _flash_mla(query.device) if plain and _fits(query, kv_rows, row_ids, layout) else None
    if attend is None:
        options = sink, valid_counts, split_keys, out, workspace
        return sparse_mla_triton(query, kv_rows, row_ids, layout, softmax_scale, *options)
    if layout.name != "bf16":
        kv_rows, layout = dequantised(kv_rows, layout)
    values = kv_rows.view(torch.bfloat16)[:, None]
    found, _, lse = attend(
        query.contiguous(), values, row_ids.contiguous()[:, None], softmax_scale, use_legacy=True
    )
    lse = lse.masked_fill(lse == torch.inf, -torch.inf)  # of a row without a key
    if out is None:
        return found, lse
    out[0].copy_(found)
    out[1].copy_(lse)
    return out


def _fits(
    query: torch.Tensor, kv_rows: torch.Tensor, row_ids: torch.Tensor, layout: KvLayout
) -> bool:
    """Whether FlashMLA takes these tensors, and is the faster one for them."""
    if query.dtype != torch.bfloat16 or query.shape[1] not in _HEADS or not len(query):
        return False
    if row_ids.shape[1] % _KEYS or not kv_rows.is_contiguous():
        return False
    if layout.name == "fp8_ds_mla":
        return kv_rows.shape[0] <= _MOST_UNPACKED
    return layout.name == "bf16"


@functools.cache
def _flash_mla(device: torch.device) -> Callable[..., Any] | None:
    """Its function for prefill on sm_90; None where there is none."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != _HOPPER:
        return None
    try:
        import flash_mla

        if not flash_mla.has_legacy():
            return None
        attend: Callable[..., Any] = flash_mla.flash_mla_sparse_fwd
    except (ImportError, AttributeError, OSError) as error:
        _LOG.info("no FlashMLA, Triton attends: %s", error)
        return None
    _LOG.info("FlashMLA attends where a prefill has 64 or 128 heads")
    return attend
