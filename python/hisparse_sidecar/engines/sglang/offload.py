"""Puts our coordinator where SGLang makes its own: with `--enable-hisparse` and our backend.

SGLang makes the coordinator before it asks for a backend, and by a name that it looks up then, so
that name has to be ours from the time when plug-ins are loaded.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.config import require
from hisparse_sidecar.engines.sglang.coordinator import HiSparseCoordinator
from hisparse_sidecar.engines.sglang.settings import read_settings
from hisparse_sidecar.engines.sglang.targets import check_targets, parameters_of
from hisparse_sidecar.engines.sglang.unsupported import check_offload_options
from hisparse_sidecar.engines.sglang.versions import check_sglang, installed_versions
from hisparse_sidecar.errors import WrongState

BACKEND_NAME = "hisparse"
COORDINATOR = "HiSparseCoordinator"
_COORDINATORS = "sglang.srt.managers.hisparse_coordinator"
_WORKERS = "sglang.srt.managers.tp_worker"
_BESIDE = "_hisparse_coordinator"
_MARK = "_hooked_by_hisparse_sidecar"
_MOST_INPUT = 5  # place of `max_req_input_len` in what a worker tells; `max_req_len` is before it


def stand_in_for_coordinator() -> None:
    """Gives our factory the name of SGLang's class, in a process that has loaded its scheduler.

    Other processes make no coordinator. What the factory makes without our backend is SGLang's own.
    """
    module: Any = sys.modules.get(_COORDINATORS)
    if module is None or getattr(module.HiSparseCoordinator, _MARK, False):
        return
    stock = module.HiSparseCoordinator

    @functools.wraps(stock, updated=())
    def make(*args: Any, **named: Any) -> Any:  # noqa: ANN401
        from sglang.srt.runtime_context import get_server_args

        server_args = get_server_args()
        if not is_asked_for(server_args):
            return stock(*args, **named)
        return create_coordinator(server_args, *args, **named)

    setattr(make, _MARK, True)
    module.HiSparseCoordinator = make


def is_asked_for(server_args: Any) -> bool:  # noqa: ANN401
    """Whether rows of decoding requests go to the host, and our backend decodes."""
    decodes = server_args.decode_attention_backend or server_args.attention_backend
    return bool(server_args.enable_hisparse and decodes == BACKEND_NAME)


def create_coordinator(server_args: Any, *args: Any, **named: Any) -> HiSparseCoordinator:  # noqa: ANN401
    """Our coordinator, of the arguments that SGLang's takes.

    Raises:
        InvalidArgument: this SGLang is not one that we know, or an option does not fit.
        RegionError: the host pool is not to be had.
    """
    check_sglang(installed_versions().sglang)
    check_targets()
    check_offload_options(server_args)
    hot_share = read_settings(server_args.hisparse_config).hot_share
    made = HiSparseCoordinator(*args, **named, hot_share=hot_share)
    setattr(made.token_to_kv_pool_allocator, _BESIDE, made)
    _limit_prompts(made.prompt_rows)
    return made


def check_coordinator(model_runner: Any) -> tuple[str, ...]:  # noqa: ANN401
    """Names of what was replaced for offload, for the start-up line; nothing without offload.

    Raises:
        WrongState: the runner has SGLang's coordinator, and should have ours.
    """
    if not is_asked_for(model_runner.server_args):
        return ()
    found = model_runner.hisparse_coordinator
    if not isinstance(found, HiSparseCoordinator):
        kind = f"{type(found).__module__}.{type(found).__name__}"
        raise WrongState(f"the coordinator is a {kind}, needs ours: was the plug-in loaded late?")
    return (COORDINATOR,)


def pool_was_cleared(allocator: object) -> None:
    """Tells the coordinator of an allocator, if one is ours, that every page was freed."""
    coordinator = getattr(allocator, _BESIDE, None)
    if coordinator is not None:
        coordinator.pool_was_cleared()


def most_prompt_tokens(prompt_rows: int) -> int:
    """Tokens of the longest prompt that SGLang's scheduler lets in beside nothing else.

    It wants room for a page and for new tokens, as many as it estimates with, besides.

    Raises:
        InvalidArgument: there is no room for any.
    """
    estimate = int(os.environ.get("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", "4096"))
    needed = estimate + 2 * PAGE_TOKENS
    message = f"hot buffers leave {prompt_rows} rows of the pool for prompts, needs {needed}"
    require(prompt_rows >= needed, message)
    return prompt_rows - estimate - PAGE_TOKENS


def _limit_prompts(prompt_rows: int) -> None:
    """Lets SGLang refuse a prompt for which there is never room: it would wait for ever."""
    workers = sys.modules.get(_WORKERS)
    if workers is None:  # nobody asks
        return
    most, worker = most_prompt_tokens(prompt_rows), workers.TpModelWorker
    original = worker.get_worker_info
    found = parameters_of(inspect.signature(original))
    if found != "(self)":
        raise WrongState(f"{_WORKERS}.TpModelWorker.get_worker_info is {found}, needs (self)")
    if not getattr(original, _MARK, False):
        worker.get_worker_info = limited(original, most)


def limited(original: Callable[[Any], tuple[Any, ...]], most: int) -> Callable[[Any], Any]:
    """What a worker tells, with prompts of at most `most` tokens."""

    @functools.wraps(original)
    def hook(self: Any) -> tuple[Any, ...]:  # noqa: ANN401
        told = original(self)
        before, place, after = told[:_MOST_INPUT], told[_MOST_INPUT], told[_MOST_INPUT + 1 :]
        if not 0 < place <= before[-1]:
            raise WrongState(f"max_req_input_len is {place}, max_req_len before it {before[-1]}")
        return (*before, min(place, most), *after)

    setattr(hook, _MARK, True)
    return hook
