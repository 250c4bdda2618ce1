"""What SGLang's own lines of its log say of offload."""

from typing import Any, NamedTuple

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import Stats


class HiSparseTokenStats(NamedTuple):
    """As SGLang's class of that name."""

    device_tokens: int
    device_token_usage: float
    host_tokens: int
    host_token_usage: float


def token_stats(core: Stats, prompt_rows: int, allocator: Any) -> HiSparseTokenStats:  # noqa: ANN401
    """Rows in use of the pool, our free ones not among them, and tokens of the host pool.

    Args:
        core: of the tier.
        prompt_rows: rows of the pool that are not ours.
        allocator: SGLang's for HiSparse.
    """
    device_pages = allocator.hisparse_attn_allocator
    outside = prompt_rows - device_pages.available_size()
    device_tokens = outside + core.slots_used
    host_tokens = (core.host_pages_total - core.host_pages_free) * PAGE_TOKENS
    capacity = core.host_pages_total * PAGE_TOKENS
    return HiSparseTokenStats(
        device_tokens, device_tokens / device_pages.size, host_tokens, host_tokens / capacity
    )
