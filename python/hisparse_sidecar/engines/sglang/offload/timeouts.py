"""Requests between prefill and decode that run for too long: SGLang looks at batches alone."""

import time
from collections.abc import Sequence
from typing import Any

RUNNING_TIMEOUT = "Request running timeout reached."  # SGLang's own words


def in_time(requests: Sequence[Any]) -> list[bool]:
    """Of each request whether it is within SGLang's `SGLANG_REQ_RUNNING_TIMEOUT`.

    Returns:
        Nothing where SGLang has no such limit.
    """
    from sglang.srt.environ import envs

    seconds = envs.SGLANG_REQ_RUNNING_TIMEOUT.get()
    if seconds <= 0:
        return []
    deadline = time.perf_counter() - seconds
    return [not 0 < req.time_stats.forward_entry_time < deadline for req in requests]
