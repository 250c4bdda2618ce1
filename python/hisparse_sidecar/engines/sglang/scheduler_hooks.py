"""Offload's hooks in SGLang's scheduler and its worker, where a process has loaded them."""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.config import require
from hisparse_sidecar.engines.sglang.coordinator import HiSparseCoordinator
from hisparse_sidecar.engines.sglang.targets import parameters_of
from hisparse_sidecar.errors import WrongState

_MANAGERS = "sglang.srt.managers."
_MARK = "_hooked_by_hisparse_sidecar"
_MOST_INPUT = 5  # place of `max_req_input_len` in what a worker tells; `max_req_len` is before it
_Function = Callable[..., Any]


def limit_prompts(prompt_rows: int) -> None:
    """Lets SGLang refuse a prompt for which there is never room: it would wait for ever.

    Args:
        prompt_rows: rows of the pool that hot buffers leave.

    Raises:
        InvalidArgument: there is no room for any prompt.
        WrongState: the worker is not as we know it.
    """
    most = functools.partial(_limited, most=most_prompt_tokens(prompt_rows))
    _replace("tp_worker", "TpModelWorker", "get_worker_info", "(self)", most)


def hear_aborts() -> None:
    """Lets an abort reach requests between prefill and decode, which SGLang's own passes over.

    Raises:
        WrongState: the scheduler is not as we know it.
    """
    _replace("scheduler", "Scheduler", "abort_request", "(self, recv_req)", _heard)


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


def _replace(
    module_name: str, owner: str, name: str, known: str, hook_of: Callable[[_Function], _Function]
) -> None:
    """Puts a hook in its place once, where the module is loaded: else nobody calls it."""
    module = sys.modules.get(_MANAGERS + module_name)
    if module is None:
        return
    place = getattr(module, owner)
    original = getattr(place, name)
    found = parameters_of(inspect.signature(original))
    if found != known:
        raise WrongState(f"{_MANAGERS}{module_name}.{owner}.{name} is {found}, needs {known}")
    if not getattr(original, _MARK, False):
        hook = hook_of(original)
        setattr(hook, _MARK, True)
        setattr(place, name, hook)


def _limited(original: _Function, most: int) -> _Function:
    @functools.wraps(original)
    def hook(self: Any) -> tuple[Any, ...]:  # noqa: ANN401
        told = original(self)
        before, place, after = told[:_MOST_INPUT], told[_MOST_INPUT], told[_MOST_INPUT + 1 :]
        if not 0 < place <= before[-1]:
            raise WrongState(f"max_req_input_len is {place}, max_req_len before it {before[-1]}")
        return (*before, min(place, most), *after)

    return hook


def _heard(original: _Function) -> _Function:
    @functools.wraps(original)
    def hook(self: Any, recv_req: Any) -> Any:  # noqa: ANN401
        found = original(self, recv_req)
        coordinator = self.hisparse_coordinator
        if isinstance(coordinator, HiSparseCoordinator):
            coordinator.abort_staged(recv_req)
        return found

    return hook
