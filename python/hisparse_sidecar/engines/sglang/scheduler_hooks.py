"""Offload's hooks in SGLang's scheduler and its worker, where a process has loaded them."""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from http import HTTPStatus
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


def admit_without_eos() -> None:
    """Lets requests that ignore the end-of-sequence token in by the estimate that others have.

    SGLang wants rows of the pool for all their new tokens, which take none while they decode.

    Raises:
        WrongState: the scheduler is not as we know it.
    """
    known = "(self, req, has_chunked_req, truncation_align_size)"
    _replace("schedule_policy", "PrefillAdder", "add_one_req", known, _as_if_eos_counts)


def give_up_long(prompt_rows: int) -> None:
    """Ends retracted requests that have outgrown the room for prompts: they would wait for ever.

    Args:
        prompt_rows: rows of the pool that hot buffers leave.

    Raises:
        WrongState: the batch is not as we know it.
    """
    hook_of = functools.partial(_without_long, prompt_rows=prompt_rows)
    known = ("(self, server_args)", "(self)")
    _replace("schedule_batch", "ScheduleBatch", "retract_decode", known, hook_of)


def most_prompt_tokens(prompt_rows: int) -> int:
    """Tokens of the longest prompt that SGLang's scheduler lets in beside nothing else.

    It wants room for a page and for new tokens, as many as it estimates with, besides.

    Raises:
        InvalidArgument: there is no room for any.
    """
    estimate = _most_estimated()
    needed = estimate + 2 * PAGE_TOKENS
    message = f"hot buffers leave {prompt_rows} rows of the pool for prompts, needs {needed}"
    require(prompt_rows >= needed, message)
    return prompt_rows - estimate - PAGE_TOKENS


def _most_estimated() -> int:
    return int(os.environ.get("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", "4096"))


def _replace(
    module_name: str,
    owner: str,
    name: str,
    known: str | tuple[str, ...],
    hook_of: Callable[[_Function], _Function],
) -> None:
    """Puts a hook in its place once, where the module is loaded: else nobody calls it."""
    module = sys.modules.get(_MANAGERS + module_name)
    if module is None:
        return
    place = getattr(module, owner)
    original = getattr(place, name)
    found = parameters_of(inspect.signature(original))
    known = (known,) if isinstance(known, str) else known
    if found not in known:
        needed = " or ".join(known)
        raise WrongState(f"{_MANAGERS}{module_name}.{owner}.{name} is {found}, needs {needed}")
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


def _as_if_eos_counts(original: _Function) -> _Function:
    @functools.wraps(original)
    def hook(self: Any, req: Any, *given: Any, **named: Any) -> Any:  # noqa: ANN401
        sampling = req.sampling_params
        asked, sampling.ignore_eos = sampling.ignore_eos, False
        try:
            return original(self, req, *given, **named)
        finally:
            sampling.ignore_eos = asked

    return hook


def _without_long(original: _Function, prompt_rows: int) -> _Function:
    @functools.wraps(original)
    def hook(self: Any, *given: Any, **named: Any) -> Any:  # noqa: ANN401
        retracted, ratio, ended = original(self, *given, **named)
        fitting = []
        for req in retracted:
            wanted = _tokens_to_come_back(req)
            if wanted < prompt_rows:
                fitting.append(req)
            else:
                _end(req, f"retracted: needs {wanted} rows for its prompt, of {prompt_rows}")
                ended.append(req)
        return fitting, ratio, ended

    return hook


def _tokens_to_come_back(req: Any) -> int:  # noqa: ANN401
    """What SGLang's scheduler wants free of the pool before it lets a retracted request in."""
    left: int = max(0, req.sampling_params.max_new_tokens - len(req.output_ids))
    computed: int = len(req.origin_input_ids) + len(req.output_ids)
    return computed + min(left, _most_estimated()) + PAGE_TOKENS


def _end(req: Any, message: str) -> None:  # noqa: ANN401
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    req.to_finish = FINISH_ABORT(message, status_code=HTTPStatus.SERVICE_UNAVAILABLE)
