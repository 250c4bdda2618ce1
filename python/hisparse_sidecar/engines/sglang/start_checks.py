"""Looks at our options before SGLang loads weights: what does not fit fails the start at once.

Whoever makes a part of ours looks at its options again. So where this hook has no place, because
SGLang has changed, they fail the start all the same, only later.
"""

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.config import ModelShape, SelectionConfig
from hisparse_sidecar.engines.sglang.install import Function, replace_once
from hisparse_sidecar.engines.sglang.settings import read_settings, unused_without_offload
from hisparse_sidecar.engines.sglang.targets import Target, check_targets, resolve
from hisparse_sidecar.engines.sglang.unsupported import (
    check_index_offload,
    check_offload_options,
)
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.requirements import require

_LOG = logging.getLogger("hisparse_sidecar.sglang")
_SCHEDULER = "sglang.srt.managers.scheduler"
# once in each process that has a model; arguments and the model's configuration are read by then
_FIRST = Target(_SCHEDULER, "Scheduler.init_tp_model_worker", ("(self)",), is_replaced=True)
START_TARGETS = (_FIRST,)


def hook_start(is_asked_for: Callable[[Any], bool], backend_name: str) -> None:
    """Puts the hook in its place, in a process that has loaded SGLang's scheduler.

    Args:
        is_asked_for: of SGLang's `ServerArgs`, whether our backend decodes with HiSparse.
        backend_name: of our backend.
    """
    if _SCHEDULER not in sys.modules:
        return
    try:
        check_targets(START_TARGETS)
    except InvalidArgument:  # of another version
        return
    owner, name, _ = resolve(_FIRST)
    hook_of = functools.partial(_init_tp_model_worker, is_asked_for, backend_name)
    replace_once(owner, name, hook_of)


def _init_tp_model_worker(
    is_asked_for: Callable[[Any], bool], backend_name: str, original: Function
) -> Function:
    @functools.wraps(original)
    def hook(self: Any) -> Any:  # noqa: ANN401
        if _is_ours(self.server_args, backend_name):
            offloads = is_asked_for(self.server_args)
            hf_config = self.model_config.hf_text_config
            check_start(self.server_args, hf_config, backend_name, offloads=offloads)
        return original(self)

    return hook


def _is_ours(server_args: Any, backend_name: str) -> bool:  # noqa: ANN401
    names = "attention_backend", "prefill_attention_backend", "decode_attention_backend"
    return any(getattr(server_args, name) == backend_name for name in names)


def check_start(
    server_args: Any,  # noqa: ANN401
    hf_config: Any,  # noqa: ANN401
    backend_name: str,
    *,
    offloads: bool,
) -> None:
    """Checks the options of a process that has our backend; says which have no effect.

    Args:
        server_args: SGLang's `ServerArgs`.
        hf_config: the model's own configuration, of its text part.
        backend_name: of our backend.
        offloads: whether our backend decodes with HiSparse.

    Raises:
        InvalidArgument: an option does not fit; says what was found and needed.
    """
    settings = read_settings(server_args.hisparse_config)
    if hasattr(hf_config, "index_topk"):  # of another model SGLang says that it has no indexer
        check_for_model(settings.selection, hf_config)
    if offloads:
        check_offload_options(server_args)
        if settings.offload_index_keys:
            check_index_offload(server_args, backend_name)
        return
    require(not settings.offload_index_keys, INDEX_OFFLOAD_NEEDS)
    unused = unused_without_offload(server_args.hisparse_config)
    if unused and not server_args.enable_hisparse:
        listed = ", ".join(unused)
        _LOG.warning("hisparse: without --enable-hisparse these have no effect: %s", listed)


INDEX_OFFLOAD_NEEDS = "offload_index_keys needs --enable-hisparse and our backend for decoding"


def check_for_model(selection: SelectionConfig, hf_config: Any) -> None:  # noqa: ANN401
    """Raises InvalidArgument unless a model can be selected for as asked.

    Args:
        selection: whose tokens are chosen.
        hf_config: the model's own configuration, of its text part.
    """
    topk = hf_config.index_topk
    shape = ModelShape(1, (0,), hf_config.index_n_heads, topk, 1.0)
    selection.check_for(shape, PAGE_TOKENS)
    # SGLang's kernels read min(length, topk) entries of a list, so it must have as many; of a row's
    # kept pages the newest may hold one token
    kept, needed = selection.num_kept_blocks, topk // PAGE_TOKENS + 1
    message = f"num_kept_blocks is {kept}, {topk} tokens and an open page need {needed}"
    require(selection.index_source != "hisa" or kept >= needed, message)
