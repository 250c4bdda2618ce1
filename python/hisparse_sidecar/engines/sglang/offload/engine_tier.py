"""The tier over SGLang's pool: which rows and pages of it are what."""

from collections.abc import Sequence
from typing import Any

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.backends import ops_of
from hisparse_sidecar.engine_rows import EngineRowsConfig, EngineRowTier
from hisparse_sidecar.engine_rows.index_part import IndexPart
from hisparse_sidecar.engines.sglang.pool.pool_part import PoolPart
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.ranks import RankPlace


def make_tier(  # noqa: PLR0913  (what the coordinator knows)
    allocator: Any,  # noqa: ANN401
    part: PoolPart,
    groups: Sequence[int],
    *,
    topk: int,
    hot_slots: int,
    num_requests: int,
    most_tokens: int,
    window_pages: int | None,
    place: RankPlace | None = None,
) -> EngineRowTier:
    """The tier in a part of SGLang's pool.

    Args:
        allocator: SGLang's allocator for HiSparse.
        part: rows of the pool that are ours.
        groups: for each layer the group whose selection it uses.
        topk: tokens that a layer attends to.
        hot_slots: rows of a hot buffer.
        num_requests: requests that may run.
        most_tokens: of one request.
        window_pages: see `IndexPart`; None = index keys stay at SGLang's slots.
        place: which of the ranks that share the host pool this is; None = it is alone.

    Raises:
        InvalidArgument: the sizes do not fit; says what was found and needed.
        RegionError: the host pool is not to be had.
        DeadlinePassed, TierDown: the ranks did not come together.
        WrongState: our part is not the pool's first pages, or a rank's socket is in use.
    """
    pool = allocator.get_kvcache()
    memory = [layer.view(torch.uint8).flatten(1) for layer in pool.kv_buffer]
    index_pages = pool.index_k_with_scale_buffer
    index = None
    if window_pages is not None:
        index = _index_part(allocator, part, max(map(len, index_pages)), window_pages)
    config = EngineRowsConfig(
        groups=tuple(groups),
        row_bytes=memory[0].shape[1],
        topk=topk,
        # as many tokens as SGLang has slots, and the spare ones of each request; ranks that share
        # the pool have the same requests, so it is as large as that of one
        host_pages=allocator.size_full // PAGE_TOKENS + num_requests,
        max_sequences=num_requests,
        max_tokens=most_tokens,
        hot_slots=hot_slots,
        first_row=part.first_row,
        num_rows=part.num_rows,
        index=index,
    )
    ops = ops_of("auto", str(memory[0].device))
    return EngineRowTier(config, memory, ops, index_pages, place)


def _index_part(
    allocator: Any,  # noqa: ANN401
    part: PoolPart,
    num_index_pages: int,
    window_pages: int,
) -> IndexPart:
    """Index pages are page 0, of nobody's, those of rows behind our part, and the windows."""
    if part.first_row != PAGE_TOKENS:
        raise WrongState(f"our rows of the pool begin at {part.first_row}, needs {PAGE_TOKENS}")
    prompt_rows = allocator.hisparse_attn_allocator.size - part.num_rows
    first_page = 1 + prompt_rows // PAGE_TOKENS
    num_pages = num_index_pages - first_page
    return IndexPart(first_page, num_pages, window_pages, row_shift=part.num_rows)
