"""Suite `core`: page operations and LRU resolves, through the binding and in Rust.

A page operation is one page assigned to a sequence or given back. A resolve looks one item up in
the executable LRU model, and assigns a slot to it where it misses.
"""

import random
from collections.abc import Callable, Iterator

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import (
    DeviceCapacity,
    HostLayout,
    HostRegion,
    HotBufferModel,
    Manager,
    time_page_ops,
)
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch, Timing, summarize

_NUM_PAGES = 4096
_POOL_PAGES, _RUST_PAGE_OPS = 100_000, 1_000_000
_TOPK, _HOT_SLOTS, _NUM_STEPS = 2048, 4096, 16
_NEW_ITEM_SHARE = 0.1


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    yield from _measure_rust_pages(stopwatch)
    manager = _manager()
    for tokens_a_call in (PAGE_TOKENS, PAGE_TOKENS * _NUM_PAGES):
        timing = stopwatch.time(_page_life(manager, tokens_a_call))
        case = f"binding: append {tokens_a_call} tokens a call"
        yield from _rates(case, "page ops/s", 2 * _NUM_PAGES, timing)
    timing = stopwatch.time(_resolve_steps())
    case = f"binding: resolve {_TOPK}, {_NEW_ITEM_SHARE:.0%} new"
    yield from _rates(case, "items/s", _NUM_STEPS * _TOPK, timing)


def _measure_rust_pages(stopwatch: Stopwatch) -> Iterator[Measurement]:
    """Take, share and release, timed in Rust: one call into it for each run."""
    runs = [
        time_page_ops(_POOL_PAGES, _RUST_PAGE_OPS)
        for _ in range(stopwatch.num_warm_ups + stopwatch.num_runs)
    ]
    seconds_per_op = [seconds / done for done, seconds in runs[stopwatch.num_warm_ups :]]
    yield from _rates("rust: take, share, release", "page ops/s", 1, summarize(seconds_per_op))


def _rates(case: str, unit: str, count: int, timing: Timing) -> Iterator[Measurement]:
    """Rates of `count` operations a run; the p99 rate is that of the slow runs."""
    yield Measurement(case, f"median {unit}", count / timing.median_seconds, "higher")
    yield Measurement(case, f"p99 {unit}", count / timing.p99_seconds, "higher")


def _manager() -> Manager:
    layout = HostLayout(1, 1, 8, 8, _NUM_PAGES)
    capacity = DeviceCapacity(
        slots=1,
        window_slots=1,
        table_tokens=_NUM_PAGES * PAGE_TOKENS,
        table_blocks=_NUM_PAGES,
        pooled_keys=_NUM_PAGES,
        sequences=1,
    )
    return Manager(HostRegion(layout.num_bytes), layout, capacity, block_tokens=PAGE_TOKENS)


def _page_life(manager: Manager, tokens_a_call: int) -> Callable[[], None]:
    """Opens a sequence of every page, appends all of its tokens, closes it."""
    num_tokens = PAGE_TOKENS * _NUM_PAGES

    def run() -> None:
        sequence = manager.open_sequence(num_tokens, 0, slots=1, window_slots=1)
        for _ in range(num_tokens // tokens_a_call):
            manager.append(sequence, tokens_a_call)
        manager.close(sequence)

    return run


def _resolve_steps() -> Callable[[], None]:
    """Steps of one decoding sequence whose selection moves by a tenth each time."""
    draw = random.Random(0)
    selection = set(range(_TOPK))
    steps: list[list[int]] = []
    for step in range(_NUM_STEPS):
        dropped = draw.sample(sorted(selection), int(_TOPK * _NEW_ITEM_SHARE))
        selection.difference_update(dropped)
        selection.update(range(_TOPK * (step + 1), _TOPK * (step + 1) + len(dropped)))
        steps.append(sorted(selection))
    model = HotBufferModel(_HOT_SLOTS)
    clock = iter(range(1, 1 << 30))

    def run() -> None:
        for items in steps:
            stamp = next(clock)
            model.resolve(items, stamp, stamp)

    return run


SUITE = Suite(
    name="core",
    summary="page operations and LRU resolves a second, in Rust and through the binding",
    device="cpu",
    measure=_measure,
)
