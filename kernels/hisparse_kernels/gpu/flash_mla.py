"""FlashMLA, where it is installed: its kernel for prefill, which `auto` calls where it is faster.

Measured on an H100 with lists of 2048 rows (benchmarks/results, suite `attend`): 4096 queries of 64
or 128 heads take it 0.7 of the time that the Triton body takes. It attends to a row in one go, so a
row's bits depend on the row alone, as long as the choice does not look at the number of rows: it
looks at dtype, heads and the size of the pool. Its decode kernel splits a row's keys by the batch:
`sparse_mla_flash` alone calls it.
"""

import functools
import logging
from typing import Any

import torch

from hisparse_kernels.flash_mla_limits import HEADS, LIST_ALIGN
from hisparse_kernels.gpu.listed_often import dequantised
from hisparse_kernels.gpu.sparse_mla import sparse_mla_triton
from hisparse_kernels.layouts import KvLayout
from hisparse_kernels.sparse_mla import NO_OPTIONS, AttentionOptions

_LOG = logging.getLogger(__name__)
PREFILL_KEYS = LIST_ALIGN["bf16"]
MOST_UNPACKED = 1 << 18  # fp8 rows, 300 MB in bf16: the stage of a prefill, not a pool
_HOPPER = (9, 0)

_Results = tuple[torch.Tensor, torch.Tensor]


class FlashMlaAbsentError(RuntimeError):
    """FlashMLA does not run here: it is not installed, or not for this device."""


def sparse_mla_fastest(
    query: torch.Tensor,
    kv_rows: torch.Tensor,
    row_ids: torch.Tensor,
    layout: KvLayout,
    softmax_scale: float,
    options: AttentionOptions = NO_OPTIONS,
) -> _Results:
    """See `sparse_mla`: by FlashMLA what it does, by Triton all else.

    FlashMLA allocates its results: `out` gets a copy of them.
    """
    plain = options.sink is None and options.valid_counts is None and options.split_keys is None
    flash_mla = None
    if plain and _fits(query, kv_rows, row_ids, layout):
        flash_mla = _module_or_none(query.device)
    if flash_mla is None:
        return sparse_mla_triton(query, kv_rows, row_ids, layout, softmax_scale, options)
    inputs = query.contiguous(), kv_rows, row_ids.contiguous()
    return attend_in_bf16(flash_mla, *inputs, layout, softmax_scale, None, options.out)


def attend_in_bf16(
    flash_mla: Any,  # noqa: ANN401 - a module
    query: torch.Tensor,
    kv_rows: torch.Tensor,
    row_ids: torch.Tensor,
    layout: KvLayout,
    softmax_scale: float,
    sink: torch.Tensor | None,
    out: _Results | None,
) -> _Results:
    """By FlashMLA's kernel for prefill; fp8_ds_mla rows are dequantised first, all of them."""
    if layout.name != "bf16":
        kv_rows, layout = dequantised(kv_rows, layout)
    values = kv_rows.view(torch.bfloat16)[:, None]
    found, _, lse = flash_mla.flash_mla_sparse_fwd(
        query, values, row_ids[:, None], softmax_scale, attn_sink=sink, use_legacy=True
    )
    return placed(found, lse, out)


def placed(found: torch.Tensor, lse: torch.Tensor, out: _Results | None) -> _Results:
    """Results of FlashMLA, whose lse of a row without a key is inf, as those of `sparse_mla`."""
    place = lse if out is None else out[1]
    torch.nan_to_num(lse, nan=torch.nan, posinf=-torch.inf, neginf=-torch.inf, out=place)
    if out is None:
        return found, lse
    out[0].copy_(found)
    return out


@functools.cache
def flash_mla_module(device: torch.device) -> Any:  # noqa: ANN401 - a module
    """FlashMLA, which has kernels for `device`.

    Raises:
        FlashMlaAbsentError: there is none; says why.
    """
    if device.type != "cuda":
        raise FlashMlaAbsentError(f"flash_mla needs sm_90, found device {str(device)!r}")
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) != _HOPPER:
        raise FlashMlaAbsentError(f"flash_mla needs sm_90, found sm_{major}{minor}")
    try:
        import flash_mla

        has_kernels = flash_mla.has_legacy()
    except ModuleNotFoundError as error:
        raise FlashMlaAbsentError(f"flash_mla is not installed: {error}") from error
    except (ImportError, AttributeError, OSError) as error:
        raise FlashMlaAbsentError(f"flash_mla does not load: {error}") from error
    if not has_kernels:
        raise FlashMlaAbsentError("flash_mla was built without its kernels for sm_90")
    return flash_mla


@functools.cache
def _module_or_none(device: torch.device) -> Any | None:  # noqa: ANN401 - a module
    try:
        flash_mla = flash_mla_module(device)
    except FlashMlaAbsentError as error:
        _LOG.info("no FlashMLA, Triton attends: %s", error)
        return None
    _LOG.info("FlashMLA attends where a prefill has 64 or 128 heads")
    return flash_mla


def _fits(
    query: torch.Tensor, kv_rows: torch.Tensor, row_ids: torch.Tensor, layout: KvLayout
) -> bool:
    """Whether FlashMLA takes these tensors, and is the faster one for them."""
    if query.dtype != torch.bfloat16 or query.shape[1] not in HEADS or not len(query):
        return False
    if row_ids.shape[1] % PREFILL_KEYS or not kv_rows.is_contiguous():
        return False
    if layout.name == "fp8_ds_mla":
        return kv_rows.shape[0] <= MOST_UNPACKED
    return layout.name == "bf16"
