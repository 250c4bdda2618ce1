"""Which calls run as the Gluon pipelines of `gpu/gluon`; all others run as their Triton bodies.

Gluon is experimental: its names change with Triton. A Triton that cannot compile a pipeline is
found out before the first launch, and the Triton bodies, with the same bits, do all the work.
"""

import functools
import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch

from hisparse_kernels.gpu.attention_call import AttentionCall
from hisparse_kernels.gpu.interpreter import interpreting
from hisparse_kernels.layouts import IndexLayout, KvLayout
from hisparse_kernels.sparse_mla import FEW_HEADS

_LOG = logging.getLogger(__name__)
_HEADS = (32, 64)
_WGMMA = (9, 0)
TCGEN05 = ((10, 0), (10, 3))  # compute capabilities
_ARCHES = (_WGMMA, *TCGEN05)
_STORED = {
    "few_heads_mla": ("fp8_ds_mla", "fp8"),
    "many_heads_mla": ("fp8_ds_mla", "fp8", "bf16"),
}

AttentionLauncher = Callable[[AttentionCall], None]
PipelineOf = Callable[[torch.Tensor, torch.Tensor, KvLayout], AttentionLauncher | None]


def pipeline_of(
    op: str, index_q: torch.Tensor, layout: IndexLayout
) -> Callable[..., torch.Tensor] | None:
    """The op's Gluon launcher, None where its Triton body is to run.

    Args:
        op: `index_logits` or `refine_logits`.
        index_q: [rows, heads, 128], all heads that score.
        layout: how the keys are stored.
    """
    if not index_q.is_cuda or interpreting() or layout.name != "fp8":
        return None
    if index_q.dtype != torch.float8_e4m3fn or index_q.shape[1] not in _HEADS:
        return None
    # copies of 16 bytes straight into shared memory
    if index_q.data_ptr() % 16 or torch.cuda.get_device_capability(index_q.device) not in _ARCHES:
        return None
    return _launcher(op, index_q.shape[1], index_q.device)


def attention_pipeline_of(
    query: torch.Tensor, kv_rows: torch.Tensor, layout: KvLayout
) -> AttentionLauncher | None:
    """The Gluon launcher of sparse attention; None: the Triton body is to run.

    That for sm_100 is no choice of this function: it has never run.

    Args:
        query: [rows, heads, query_dim].
        kv_rows: [N, row_bytes] uint8.
        layout: how a KV row is stored.
    """
    if not query.is_cuda or interpreting() or query.dtype == torch.float32:
        return None
    op = "few_heads_mla" if query.shape[1] <= FEW_HEADS else "many_heads_mla"
    if layout.name not in _STORED[op]:
        return None
    # loads and copies of 16 bytes
    if kv_rows.data_ptr() % 16 or torch.cuda.get_device_capability(query.device) != _WGMMA:
        return None
    return _launcher(op, layout, query.device)


def sm100_attention_pipeline_of(
    query: torch.Tensor, kv_rows: torch.Tensor, layout: KvLayout
) -> AttentionLauncher | None:
    """Like `attention_pipeline_of`, of the body for sm_100, for who asks for it."""
    if not query.is_cuda or interpreting() or query.dtype == torch.float32:
        return None
    heads = query.shape[1]
    if heads <= FEW_HEADS or layout.name not in _STORED["many_heads_mla"]:
        return None
    # tensor maps are of aligned rows, and of at least one
    if kv_rows.data_ptr() % 16 or not len(kv_rows):
        return None
    if torch.cuda.get_device_capability(query.device) not in TCGEN05:
        return None
    # 64 or 128 heads to a program: one kernel each
    return _launcher("many_heads_mla_sm100", (64 if heads <= 64 else 128, layout), query.device)


@functools.cache
def _launcher(op: str, variant: object, device: torch.device) -> Callable[..., Any] | None:
    """The launcher, once its kernel was compiled; None, and a warning, where that fails."""
    try:
        module = importlib.import_module(f"hisparse_kernels.gpu.gluon.{op}")
        with torch.cuda.device(device):
            getattr(module, f"compile_{op}")(variant)
    except Exception as error:  # the compiler raises whatever it likes
        _LOG.warning("no Gluon pipeline for %s, Triton runs it: %s", op, error)
        return None
    launcher: Callable[..., Any] = getattr(module, f"{op}_gluon")
    return launcher
