"""Offload's hooks in SGLang's scheduler and its worker."""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.engines.sglang.install import Function
from hisparse_sidecar.engines.sglang.offload.beside import coordinator_of
from hisparse_sidecar.engines.sglang.offload.coordinator import HiSparseCoordinator
from hisparse_sidecar.engines.sglang.offload.requests import end_as_unavailable
from hisparse_sidecar.engines.sglang.offload.staged_ends import end_staged
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.requirements import require

_MOST_INPUT = 5  # place of `max_req_input_len` in what a worker tells; `max_req_len` is before it


def most_prompt_tokens(prompt_rows: int) -> int:
    """Tokens of the longest prompt that SGLang's scheduler lets in beside nothing else.

    It wants room for a page and for new tokens, as many as it estimates with, besides.

    Args:
        prompt_rows: rows of the pool that hot buffers leave.

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


def _ours(coordinator: object) -> HiSparseCoordinator | None:
    return coordinator if isinstance(coordinator, HiSparseCoordinator) else None


# -- the worker -------------------------------------------------------------------------------


def _get_worker_info(original: Function) -> Function:
    """Lets SGLang refuse a prompt for which there is never room: it would wait for ever."""

    @functools.wraps(original)
    def hook(self: Any) -> tuple[Any, ...]:  # noqa: ANN401
        told: tuple[Any, ...] = original(self)
        coordinator = _ours(self.model_runner.hisparse_coordinator)
        if coordinator is None:
            return told
        before, place, after = told[:_MOST_INPUT], told[_MOST_INPUT], told[_MOST_INPUT + 1 :]
        if not 0 < place <= before[-1]:
            raise WrongState(f"max_req_input_len is {place}, max_req_len before it {before[-1]}")
        return (*before, min(place, most_prompt_tokens(coordinator.prompt_rows)), *after)

    return hook


# -- requests between prefill and decode, which SGLang's own code passes over -------------------


def _abort_request(original: Function) -> Function:
    @functools.wraps(original)
    def hook(self: Any, recv_req: Any) -> Any:  # noqa: ANN401
        found = original(self, recv_req)
        coordinator = _ours(self.hisparse_coordinator)
        if coordinator is not None:
            coordinator.abort_staged(recv_req)
        return found

    return hook


def _process_pending_chunked_abort(original: Function) -> Function:
    """SGLang calls it first in each pass: whoever is marked until then takes no part in it."""

    @functools.wraps(original)
    def hook(self: Any) -> None:  # noqa: ANN401
        original(self)
        coordinator = _ours(self.hisparse_coordinator)
        if coordinator is not None:
            end_staged(self, coordinator)

    return hook


def _pause_generation(original: Function) -> Function:
    @functools.wraps(original)
    def hook(self: Any, recv_req: Any) -> Any:  # noqa: ANN401
        coordinator = _ours(self.hisparse_coordinator)
        if recv_req.mode != "retract":
            coordinator = None
        if coordinator is not None:
            end_staged(self, coordinator)  # or they would be computed again
        found = original(self, recv_req)
        if coordinator is not None:
            _retract_staged(self, coordinator)
            _abort_outgrown(self, coordinator.prompt_rows)
        return found

    return hook


def _retract_staged(scheduler: Any, coordinator: HiSparseCoordinator) -> None:  # noqa: ANN401
    from sglang.srt.managers.schedule_batch import retract_all

    requests = [staged.req for staged in coordinator.ack_staging_queue]
    needs_args = "server_args" in inspect.signature(retract_all).parameters  # 0.5.17
    named = {"server_args": scheduler.server_args} if needs_args else {}
    retract_all(
        reqs=requests,
        req_to_token_pool=scheduler.req_to_token_pool,
        token_to_kv_pool_allocator=scheduler.token_to_kv_pool_allocator,
        tree_cache=scheduler.tree_cache,
        hisparse_coordinator=coordinator,
        offload_kv=False,
        **named,
    )
    for req in requests:
        scheduler._add_request_to_queue(req)


def _abort_outgrown(scheduler: Any, prompt_rows: int) -> None:  # noqa: ANN401
    """Ends waiting requests that were retracted and have outgrown the room for prompts."""
    from sglang.srt.managers.io_struct import AbortReq
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    waiting = [
        (req, _why_outgrown(req, prompt_rows) if req.is_retracted else None)
        for req in scheduler.waiting_queue
    ]
    for req, reason in waiting:
        if reason is not None:
            told = FINISH_ABORT(reason, 503).to_json()
            scheduler.waiting_queue = [req]  # an abort means all whose names begin as the one given
            scheduler.abort_request(AbortReq(rid=req.rid, finished_reason=told))
    scheduler.waiting_queue = [req for req, reason in waiting if reason is None]


def _build_hisparse_decode_batch(original: Function) -> Function:
    """Log probabilities of the tokens that were asked for: SGLang's are those of the prompt's."""

    @functools.wraps(original)
    def hook(self: Any, reqs: list[Any]) -> Any:  # noqa: ANN401
        batch = original(self, reqs)
        if _ours(self.hisparse_coordinator) is not None and batch.return_logprob:
            batch.token_ids_logprobs = [req.logprob.token_ids_logprob for req in reqs]
        return batch

    return hook


# -- room for prompts: decoding takes slots, but no rows of the pool ----------------------------


def _init_adder(original: Function) -> Function:
    """Holds prompts back where the slots would not suffice for what requests will still write."""

    @functools.wraps(original)
    def hook(self: Any, *given: Any, **named: Any) -> None:  # noqa: ANN401
        original(self, *given, **named)
        allocator = self.token_to_kv_pool_allocator
        coordinator = coordinator_of(allocator)
        if coordinator is None:
            return
        running = [] if self.running_batch is None else self.running_batch.reqs
        staged = [one.req for one in coordinator.ack_staging_queue]
        estimate = inspect.unwrap(type(self)._get_running_request_total_token_offset)
        wanted = sum(estimate(self, req) for req in (*running, *staged))
        short = max(0, wanted - _slots_beyond_rows(coordinator))
        if hasattr(self, "memory_budget"):
            self.memory_budget.total_offset += short
        else:  # 0.5.17
            self.rem_total_token_offset += short

    return hook


def _slots_beyond_rows(coordinator: HiSparseCoordinator) -> int:
    """Slots that are free or cached, beyond as many as prompts find rows of the pool for."""
    allocator = coordinator.token_to_kv_pool_allocator
    slots: int = allocator.logical_attn_allocator.available_size()
    slots += coordinator.prefixes.evictable_slots
    return max(0, slots - int(allocator.hisparse_attn_allocator.available_size()))


def _rows_of_running_request(original: Function) -> Function:
    """Running requests write no more rows of the pool; their slots are seen to at the start."""

    @functools.wraps(original)
    def hook(self: Any, req: Any) -> Any:  # noqa: ANN401
        ours = coordinator_of(self.token_to_kv_pool_allocator)
        return original(self, req) if ours is None else 0

    return hook


def _add_one_req(original: Function) -> Function:
    """Lets requests that ignore the end-of-sequence token in by the estimate that others have.

    SGLang wants rows of the pool for all their new tokens, which take none while they decode.
    """

    @functools.wraps(original)
    def hook(
        self: Any,  # noqa: ANN401
        req: Any,  # noqa: ANN401
        has_chunked_req: bool,
        truncation_align_size: int | None,
    ) -> Any:  # noqa: ANN401
        sampling = req.sampling_params
        asked, sampling.ignore_eos = sampling.ignore_eos, False
        try:
            return original(self, req, has_chunked_req, truncation_align_size)
        finally:
            sampling.ignore_eos = asked

    return hook


def _retract_decode(original: Function) -> Function:
    """Ends retracted requests that have outgrown the room for prompts: they would wait for ever."""

    @functools.wraps(original)
    def hook(self: Any, *given: Any, **named: Any) -> Any:  # noqa: ANN401
        retracted, ratio, ended = original(self, *given, **named)
        coordinator = _ours(self.hisparse_coordinator)
        if coordinator is None:
            return retracted, ratio, ended
        fitting = []
        for req in retracted:
            reason = _why_outgrown(req, coordinator.prompt_rows)
            if reason is None:
                fitting.append(req)
            else:
                end_as_unavailable(req, reason)
                ended.append(req)
        return fitting, ratio, ended

    return hook


def _why_outgrown(req: Any, prompt_rows: int) -> str | None:  # noqa: ANN401
    """Why a retracted request is never let in again; None = it may be."""
    wanted = _tokens_to_come_back(req)
    if wanted < prompt_rows:
        return None
    return f"retracted: needs {wanted} rows for its prompt, of {prompt_rows}"


def _tokens_to_come_back(req: Any) -> int:  # noqa: ANN401
    """What SGLang's scheduler wants free of the pool before it lets a retracted request in."""
    left: int = max(0, req.sampling_params.max_new_tokens - len(req.output_ids))
    computed: int = len(req.origin_input_ids) + len(req.output_ids)
    return computed + min(left, _most_estimated()) + PAGE_TOKENS


SCHEDULER_HOOKS: dict[str, Callable[[Function], Function]] = {
    "Scheduler.abort_request": _abort_request,
    "Scheduler.process_pending_chunked_abort": _process_pending_chunked_abort,
    "Scheduler.pause_generation": _pause_generation,
    "Scheduler._build_hisparse_decode_batch": _build_hisparse_decode_batch,
    "ScheduleBatch.retract_decode": _retract_decode,
    "PrefillAdder.__init__": _init_adder,
    "PrefillAdder._get_running_request_total_token_offset": _rows_of_running_request,
    "PrefillAdder.add_one_req": _add_one_req,
    "TpModelWorker.get_worker_info": _get_worker_info,
}
