"""Sparse attention by FlashMLA alone, its kernel for decode too: the backend `flash_mla`.

That kernel shares a row's keys out by the batch, so a row's last bits depend on the rows beside it.
"""

import logging
from typing import Any

import torch

from hisparse_kernels.flash_mla_limits import check_flash_mla
from hisparse_kernels.gpu.flash_mla import (
    MOST_UNPACKED,
    PREFILL_KEYS,
    attend_in_bf16,
    flash_mla_module,
    placed,
)
from hisparse_kernels.gpu.leading_ids import leading_ids_triton
from hisparse_kernels.gpu.listed_often import is_listed_often
from hisparse_kernels.layouts import PAGE_TOKENS, KvLayout
from hisparse_kernels.sparse_mla import (
    NO_OPTIONS,
    ROW_ALIGN,
    AttentionOptions,
    empty_results,
)

_LOG = logging.getLogger(__name__)
_MOST_KEPT = 1024  # rows; attention of more takes long beside the 26 us that a schedule takes

# Of device, rows, heads, ids of a list and rows of a page. None is ever dropped, for graphs may
# read it; the sizes of each are the launches' own, so there are few.
_schedules: dict[tuple[torch.device, int, int, int, int], Any] = {}


def sparse_mla_flash(
    query: torch.Tensor,
    kv_rows: torch.Tensor,
    row_ids: torch.Tensor,
    layout: KvLayout,
    softmax_scale: float,
    options: AttentionOptions = NO_OPTIONS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `sparse_mla`; but a row's bits depend on the number of rows, too.

    FlashMLA's kernel for decode reads fp8_ds_mla rows; bf16 rows, and fp8 rows that are listed
    often, as in prefill, are read by its kernel for prefill. Both allocate their results: `out`
    gets a copy of them, and `workspace` is not used. The first call of up to 1024 rows of a shape
    makes a schedule, which is kept, and waits for it: run a shape once before it is captured.

    Raises:
        ValueError: FlashMLA does not do this; says what was found and what is needed.
        FlashMlaAbsentError: it does not run here.
    """
    check_flash_mla(
        layout=layout,
        num_heads=query.shape[1],
        query_dtype=query.dtype,
        topk=row_ids.shape[1],
        split_keys=options.split_keys,
    )
    flash_mla = flash_mla_module(query.device)
    if not len(query) or not len(kv_rows):
        return _of_no_keys(query, layout, options.out)
    row_ids = _aligned(row_ids)
    if options.valid_counts is not None:
        row_ids = leading_ids_triton(row_ids, options.valid_counts.contiguous())
    sink = None if options.sink is None else options.sink.contiguous()
    inputs = _aligned(query), kv_rows, row_ids
    if _goes_in_bf16(kv_rows, row_ids, layout):
        return attend_in_bf16(flash_mla, *inputs, layout, softmax_scale, sink, options.out)
    return placed(*_decode(flash_mla, *inputs, layout, softmax_scale, sink), options.out)


def _goes_in_bf16(kv_rows: torch.Tensor, row_ids: torch.Tensor, layout: KvLayout) -> bool:
    """Whether the kernel for prefill attends."""
    if layout.name == "bf16":
        return True
    fits = row_ids.shape[1] % PREFILL_KEYS == 0 and len(kv_rows) <= MOST_UNPACKED
    return fits and is_listed_often(kv_rows, row_ids)


def _decode(
    flash_mla: Any,  # noqa: ANN401 - a module
    query: torch.Tensor,
    kv_rows: torch.Tensor,
    row_ids: torch.Tensor,
    layout: KvLayout,
    softmax_scale: float,
    sink: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    pages = _pages(kv_rows)
    key = query.device, *query.shape[:2], row_ids.shape[1], pages.shape[1]
    kept = _schedules.get(key)
    schedule = flash_mla.get_mla_metadata()[0] if kept is None else kept
    found, lse = flash_mla.flash_mla_with_kvcache(
        query[:, None],
        pages,
        None,
        None,
        layout.latent_dim,
        schedule,  # an empty one is filled by the call
        softmax_scale=softmax_scale,
        is_fp8_kvcache=True,
        indices=row_ids[:, None],
        attn_sink=sink,
        use_legacy=True,
    )
    if kept is None and len(query) <= _MOST_KEPT:
        if torch.cuda.is_current_stream_capturing():
            _LOG.warning("captured before it was run: each replay schedules %s anew", key[1:])
        else:
            torch.cuda.current_stream(query.device).synchronize()  # others may use it at once
            _schedules.setdefault(key, schedule)  # of two first calls at once one
    return found[:, 0], lse[:, :, 0]


def _pages(kv_rows: torch.Tensor) -> torch.Tensor:
    """The same rows as pages [n, page rows, 1, row_bytes]: of 64, or of one wherever each lies."""
    num_rows, row_bytes = kv_rows.shape
    if kv_rows.is_contiguous() and num_rows % PAGE_TOKENS == 0:
        return kv_rows.view(-1, PAGE_TOKENS, 1, row_bytes)
    strides = kv_rows.stride(0), row_bytes, row_bytes, 1
    return kv_rows.as_strided((num_rows, 1, 1, row_bytes), strides)


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ROW_ALIGN else tensor


def _of_no_keys(
    query: torch.Tensor, layout: KvLayout, out: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    out = out or empty_results(query, layout)
    out[0].zero_()
    out[1].fill_(-torch.inf)
    return out
