"""Requests that fit: the count that is computed, and real pools that are filled."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hisparse_sidecar.engines.sglang.offload.capacity import (
    Requests,
    fit_of_ours,
    fit_of_sglang,
    in_pool_of_ours,
    in_pool_of_sglang,
)
from hisparse_sidecar.engines.sglang.pool.index_sizes import IndexSizes
from tests.engines.sglang import offload_world
from tests.engines.sglang import world as index_keys
from tests.engines.sglang.index_offload_world import IndexWorld, pool_hooks
from tests.engines.sglang.offload_world import LAYERS, PAGE, Engine

# the proportions of 128K tokens, hot buffers of 4096 rows and windows of 192 pages, 1 to 21
HOT, WINDOW, PROMPT, NEW, ROW_BYTES = 192, 9, 5950, 60, 656
REQUESTS = Requests(LAYERS, LAYERS, ROW_BYTES, PROMPT + NEW + 2, HOT)
AT_128K = Requests(61, 61, ROW_BYTES, 131072, 4096)


@pytest.mark.parametrize(
    ("gib", "theirs", "stay", "ours"), [(20, 13, 12, 50), (40, 30, 29, 120), (60, 48, 47, 191)]
)
def test_at_128k_three_times_as_many_fit_as_in_sglangs_hisparse(
    gib: int, theirs: int, stay: int, ours: int
) -> None:
    """The numbers of `examples/sglang.md`."""
    assert fit_of_sglang(gib << 30, AT_128K).requests == theirs
    assert fit_of_ours(gib << 30, AT_128K, None).requests == stay
    assert fit_of_ours(gib << 30, AT_128K, 192).requests == ours >= 3 * theirs


@pytest.mark.parametrize(
    ("gib", "ratio", "share", "wanted"),
    [(20, 20, 0.61, 50), (40, 25, 0.78, 120), (60, 27, 0.844, 191)],
)
def test_settings_as_they_are_written_down_fit_as_many(
    gib: int, ratio: int, share: float, wanted: int
) -> None:
    """The last column of the table in `examples/sglang.md`."""
    sizes = IndexSizes(share, AT_128K.hot_slots, 192, ratio)
    cell = sizes.cell_bytes(AT_128K.num_layers, AT_128K.num_groups, AT_128K.row_bytes)
    found = in_pool_of_ours((gib << 30) // cell, sizes, AT_128K, 192)
    assert found.requests == wanted


def test_at_128k_with_bf16_rows_too_where_the_pool_is_large() -> None:
    rows = replace(AT_128K, row_bytes=1152)
    found = [fit_of_sglang(gib << 30, rows).requests for gib in (20, 40, 60)]
    ours = [fit_of_ours(gib << 30, rows, 192).requests for gib in (20, 40, 60)]
    assert (found, ours) == ([9, 25, 41], [25, 76, 127])


def test_what_binds_is_found() -> None:
    def fit(rows: int, window_pages: int | None, share: float, ratio: int) -> int:
        sizes = IndexSizes(share, HOT, window_pages or 0, ratio)
        return in_pool_of_ours(rows, sizes, REQUESTS, window_pages).requests

    rows, tokens = 400 * PAGE, 94 * PAGE
    assert fit(rows, WINDOW, 0.7, 100) == int(rows * 0.7) // (HOT + 1)  # hot buffers
    assert fit(rows, WINDOW, 0.7, 3) == 3 * rows // tokens  # slots
    assert fit(rows, WINDOW, 0.8, 100) == 0  # the prompt has no room
    assert in_pool_of_sglang(rows, 100, REQUESTS).requests == 1 + (rows - tokens) // (HOT + PAGE)
    assert in_pool_of_sglang(tokens - 1, 100, REQUESTS).requests == 0


def pool_bytes(world: IndexWorld) -> int:
    """Device memory of a pool, and of what we keep beside it and its rows."""
    pool, tier = world.pool, world.coordinator.tier
    found = sum(one.nbytes for one in (*pool.kv_buffer, *pool.index_k_with_scale_buffer))
    states = [tensor for state in tier._hot.of_group for tensor in vars(state).values()]
    found += sum(one.nbytes for one in states)
    return found + (0 if tier.index is None else tier.index.num_bytes)


def filled_by_sglang(pool: Any, allocator: Any) -> int:
    """Requests that SGLang's own allocator has room for, by the steps of its coordinator."""
    count, pages = 0, -(-REQUESTS.tokens // PAGE) * PAGE
    while True:
        slots = allocator.logical_attn_allocator.alloc(pages)
        rows = allocator.hisparse_attn_allocator.alloc(pages)
        if slots is None or rows is None:
            return count
        allocator.full_to_hisparse_device_index_mapping[slots] = rows
        allocator.alloc_device_buffer(slots, HOT + PAGE)
        count += 1


def test_a_filled_pool_has_three_times_the_requests(
    sglang: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = 40 << 20
    theirs, ours = fit_of_sglang(budget, REQUESTS), fit_of_ours(budget, REQUESTS, WINDOW)
    assert ours.requests >= 3 * theirs.requests > 3

    monkeypatch.setattr(offload_world, "CONTEXT", 6400)
    monkeypatch.setattr(index_keys, "MAX_TOKENS", 6400)
    monkeypatch.setattr(offload_world, "DEVICE_PAGES", theirs.pool_rows // PAGE)
    stock = Engine("fp8", ratio=theirs.slots_per_row, hot_share=0.1)
    stock.coordinator.destroy()
    stock.allocator.clear()
    index = stock.pool.index_k_with_scale_buffer
    assert sum(one.nbytes for one in (*stock.pool.kv_buffer, *index)) <= budget + (1 << 17)
    assert filled_by_sglang(stock.pool, stock.allocator) == theirs.requests

    monkeypatch.setattr(offload_world, "DEVICE_PAGES", ours.pool_rows // PAGE)
    monkeypatch.setattr(offload_world, "REQUESTS", ours.requests + 2)
    options = {
        "host_to_device_ratio": ours.slots_per_row,
        "hot_share": ours.hot_share,
        "window_pages": WINDOW,
    }
    sizes = {"kv": "fp8", "ratio": ours.slots_per_row, "hot_share": ours.hot_share}
    with pool_hooks():
        world = IndexWorld(tmp_path, options, **sizes)
    assert pool_bytes(world) <= budget * 1.03  # tables of so few pages round up
    while world.start_if_room(PROMPT, NEW):
        pass
    assert len(world.running) == ours.requests
    world.step(None)
    world.coordinator.destroy()
