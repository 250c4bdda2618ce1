"""Ends requests between prefill and decode that were aborted or have run for too long.

They are in none of the places where SGLang looks for such. They end as one between two chunks of
its prefill does, at the beginning of a pass, on all ranks in the same: they get no room, and no
step is run for them.
"""

import inspect
from typing import Any

from hisparse_sidecar.engines.sglang.offload.coordinator import HiSparseCoordinator


def end_staged(scheduler: Any, coordinator: HiSparseCoordinator) -> None:  # noqa: ANN401
    """Ends those that are marked: gives back what they have, and tells SGLang's tokenizer once.

    Args:
        scheduler: SGLang's, between two passes.
        coordinator: its own.
    """
    for req in coordinator.marked_requests():
        reason, req.to_finish = req.to_finish, None
        _mark_as_ended(req, reason)
        coordinator.abort_staging_request(req)
        _release(scheduler, req)
        _tell(scheduler, req, reason.to_json())


def _mark_as_ended(req: Any, reason: Any) -> None:  # noqa: ANN401
    from sglang.srt.disaggregation.utils import prepare_abort

    prepare_abort(req, reason.message, reason.status_code)
    req.time_stats.trace_ctx.abort(abort_info={"reason": reason.message})


def _release(scheduler: Any, req: Any) -> None:  # noqa: ANN401
    """Slots and the row of the table; nothing of it comes to the prefix cache."""
    from sglang.srt.mem_cache.common import release_kv_cache

    release_more = getattr(scheduler, "_release_aborted_request", None)
    if release_more is not None:  # 0.5.17 has none
        release_more(req)
    has_old_name = "is_insert" in inspect.signature(release_kv_cache).parameters  # 0.5.17
    kept = {"is_insert" if has_old_name else "checkpoint": False}
    release_kv_cache(req, scheduler.tree_cache, **kept)


def _tell(scheduler: Any, req: Any, told: Any) -> None:  # noqa: ANN401
    from sglang.srt.managers import scheduler as module
    from sglang.srt.managers.io_struct import AbortReq

    make = getattr(module, "_make_abort_req", None)  # 0.5.17 has none, nor a method that sends
    made = AbortReq(rid=req.rid, finished_reason=told) if make is None else make(req, told)
    send = getattr(scheduler, "send_abort_output", None)
    if send is None:
        send = scheduler.ipc_channels.send_to_tokenizer.send_output
    send(made, req)
