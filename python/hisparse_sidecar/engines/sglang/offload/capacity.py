"""How many requests of one length decode at once in a given amount of GPU memory.

What is counted is the pool with its index keys, and our tables that grow with it; weights,
activations and graphs are not, nor SGLang's mapping of slots (8 B each, which its configurator does
not count either). Host memory is taken to be enough for all slots.
"""

from dataclasses import dataclass

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.engine_rows.index_part import INDEX_LAYOUT, pages_of
from hisparse_sidecar.engines.sglang.pool.index_sizes import IndexSizes

_MOST_SLOTS_PER_ROW = 128
_SHARES = tuple(share / 64 for share in range(1, 64))


@dataclass(frozen=True)
class Requests:
    """Requests that are all alike.

    Attributes:
        num_layers: layers of the pool.
        num_groups: those that select.
        row_bytes: bytes of a KV row.
        tokens: prompt and new tokens of a request.
        hot_slots: rows of a hot buffer.
    """

    num_layers: int
    num_groups: int
    row_bytes: int
    tokens: int
    hot_slots: int

    @property
    def _page_rows(self) -> int:
        return pages_of(self.tokens) * PAGE_TOKENS


@dataclass(frozen=True)
class Fit:
    """What fits, and with which settings.

    Attributes:
        requests: that decode at once.
        pool_rows: rows of the device pool.
        slots_per_row: `host_to_device_ratio`.
        hot_share: of the pool, for hot buffers; None = SGLang's HiSparse divides nothing.
    """

    requests: int
    pool_rows: int
    slots_per_row: int
    hot_share: float | None = None


def fit_of_sglang(gpu_bytes: int, requests: Requests) -> Fit:
    """The most by SGLang's own HiSparse, whose every layer has index keys of every slot.

    A decoding request has a hot buffer and a page of the pool, and the last one's prompt is in it.
    """
    found = [
        in_pool_of_sglang(gpu_bytes // _cell_of_sglang(requests, ratio), ratio, requests)
        for ratio in range(1, _MOST_SLOTS_PER_ROW + 1)
    ]
    return max(found, key=lambda fit: fit.requests)


def _cell_of_sglang(requests: Requests, slots_per_row: int) -> int:
    index_bytes = INDEX_LAYOUT.row_bytes * slots_per_row
    return requests.num_layers * (requests.row_bytes + index_bytes)


def in_pool_of_sglang(pool_rows: int, slots_per_row: int, requests: Requests) -> Fit:
    """Requests in a pool of so many rows, of SGLang's HiSparse."""
    rows, prompt = pool_rows // PAGE_TOKENS * PAGE_TOKENS, requests._page_rows
    by_slots = rows * slots_per_row // prompt
    beside_last = (rows - prompt) // (requests.hot_slots + PAGE_TOKENS)
    return Fit(max(0, min(by_slots, beside_last + 1)), rows, slots_per_row)


def fit_of_ours(gpu_bytes: int, requests: Requests, window_pages: int | None) -> Fit:
    """The most by our host tier.

    Args:
        gpu_bytes: memory of the pool and all that grows with it.
        requests: what is to decode.
        window_pages: with index offload, pages of a window; None = index keys stay.
    """
    found = []
    for ratio in range(1, _MOST_SLOTS_PER_ROW + 1):
        for share in _SHARES:
            sizes = _sizes(requests, window_pages, share, ratio)
            rows = gpu_bytes // _cell_of_ours(requests, sizes, window_pages)
            found.append(in_pool_of_ours(rows, sizes, requests, window_pages))
    return max(found, key=lambda fit: fit.requests)


def _sizes(
    requests: Requests, window_pages: int | None, share: float, slots_per_row: int
) -> IndexSizes:
    return IndexSizes(share, requests.hot_slots, window_pages or 0, slots_per_row)


def _cell_of_ours(requests: Requests, sizes: IndexSizes, window_pages: int | None) -> int:
    layers, groups, row = requests.num_layers, requests.num_groups, requests.row_bytes
    if window_pages is not None:
        return sizes.cell_bytes(layers, groups, row)
    # SGLang's buffer of index keys, and our pooled keys and slot tables beside it
    tables = INDEX_LAYOUT.row_bytes / PAGE_TOKENS * layers + 2 * groups
    own = sizes.slots_per_row * tables + 8 * sizes.hot_share * groups
    return _cell_of_sglang(requests, sizes.slots_per_row) + int(own) + 1


def in_pool_of_ours(
    pool_rows: int, sizes: IndexSizes, requests: Requests, window_pages: int | None
) -> Fit:
    """Requests in a pool of so many rows, of our host tier.

    A decoding request has a hot buffer and a row of our part of the pool, and a window; a prompt
    fits the rest.
    """
    rows, prompt = pool_rows // PAGE_TOKENS * PAGE_TOKENS, requests._page_rows
    part = int(rows * sizes.hot_share) // PAGE_TOKENS * PAGE_TOKENS
    most = min(rows * sizes.slots_per_row // prompt, part // (requests.hot_slots + 1))
    if window_pages is not None:
        prompt_pages = (rows - part) // PAGE_TOKENS
        windows = sizes.index_rows(rows) // PAGE_TOKENS - prompt_pages
        most = min(most, windows // (window_pages + 1))
    fits = rows - part >= prompt
    return Fit(most if fits else 0, rows, sizes.slots_per_row, sizes.hot_share)
