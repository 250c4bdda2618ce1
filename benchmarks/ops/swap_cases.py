"""Hot buffers: whole swap-in steps beside SGLang's, and what gives and takes slots, alone."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.compare import check_equal
from benchmarks.ops.count import release_work, resolve_work, swap_in_work
from benchmarks.ops.hot_buffers import (
    HOT_SLOTS,
    TOPK,
    HotBuffers,
    host_pages,
    host_row_ids,
    selections,
    stamps,
)
from benchmarks.ops.inputs import FP8_ROWS
from benchmarks.ops.ours import triton_op
from benchmarks.ops.peers import Peers
from benchmarks.ops.pinned import PinnedPool
from benchmarks.ops.timing import Timed
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import release_items_ref, resolve_ref

_CONTEXT = 64 * 1024
_STEPS = 16
_ROW_BYTES = FP8_ROWS.row_bytes
BATCHES = (1, 8, 32, 128)


def swap_cases(peers: Peers, pool: PinnedPool) -> Iterator[Case]:
    for percent in (2, 10, 30):
        for batch in BATCHES:
            yield swap_case(peers, pool, batch, percent)
    for batch in BATCHES:
        name = f"resolve batch {batch}, 10 % misses, L=64K"
        yield Case(name, partial(_resolve, pool, batch, TOPK // 10))
    yield Case(f"release_items {HOT_SLOTS} slots, L=64K", partial(_release, pool))


def swap_case(peers: Peers, pool: PinnedPool, batch: int, percent: int) -> Case:
    """Whole swap-in steps in which so many of the items miss."""
    misses = f"{percent} % misses" if percent else "all resident"
    name = f"resolve + swap_in batch {batch}, {misses}, L=64K"
    return Case(name, partial(prepare_steps, peers, pool, batch, TOPK * percent // 100))


class _Steps:
    """Full hot buffers, and steps from there on, each with so many misses.

    Attributes:
        drawn: items of the two steps that filled the buffers, then of the steps.
        steps: items and stamps of each step.
        row_ids: [batch, tokens] int64, host row of every position.
        wanted: rows of the first step's items.
    """

    def __init__(self, pool: PinnedPool, batch: int, misses: int) -> None:
        self.host_rows = pool.rows(_ROW_BYTES)
        pool_pages = len(self.host_rows) // PAGE_TOKENS
        table = host_pages(batch, _CONTEXT // PAGE_TOKENS, pool_pages)
        self.row_ids = host_row_ids(table)
        self.buffers = HotBuffers(self.host_rows, table)
        self.drawn = selections(batch, _CONTEXT, misses, _STEPS)
        numbered = [(items, stamps(number)) for number, items in enumerate(self.drawn, 1)]
        for step in numbered[:2]:
            self.buffers.step(*step)
        self._saved = self.buffers.saved()
        self.steps = numbered[2:]
        first = self.row_ids.gather(1, self.drawn[2].long()).flatten()
        self.wanted = self.host_rows[first]

    def reset(self) -> None:
        """Back to before the first step."""
        self.buffers.restore(self._saved)

    def check_resolve(self, misses: int) -> None:
        """The first step's slots, state and plan against the reference, and how many missed."""
        items, found, results = self.drawn[2], [], []
        for resolve in (resolve_ref, triton_op("resolve")):
            self.reset()
            found.append(torch.empty_like(items))
            self.buffers.resolve(resolve, *self.steps[0], found[-1])
            results.append((self.buffers.saved(), self.buffers.saved_plan(misses)))
        check_equal("slots", found[1], found[0])
        (state, plan), (wanted_state, wanted_plan) = results[1], results[0]
        for name, wanted in (vars(wanted_state) | vars(wanted_plan)).items():
            check_equal(name, (vars(state) | vars(plan))[name], wanted)
        counts = plan.miss_count
        check_equal("misses", counts, torch.full_like(counts, misses))


def prepare_steps(peers: Peers, pool: PinnedPool, batch: int, misses: int) -> Prepared:
    steps = _Steps(pool, batch, misses)
    buffers = steps.buffers

    def check() -> None:
        steps.check_resolve(misses)
        steps.reset()
        slots = buffers.step(*steps.steps[0])
        check_equal("rows", buffers.hot_rows[slots.flatten().long()], steps.wanted)

    def sglang() -> Contender:
        load = peers.sglang().swap_in(TOPK, HOT_SLOTS, _ROW_BYTES)
        lengths = torch.full((batch,), _CONTEXT, dtype=torch.int32, device="cuda")
        theirs = load(steps.host_rows, steps.row_ids, lengths)
        for items in steps.drawn[:2]:
            theirs.step(items)
        saved = theirs.saved()

        def check_peer() -> None:
            theirs.restore(saved)
            theirs.refill()  # what was timed before has evicted some of them
            locations = theirs.step(steps.drawn[2])
            check_equal("rows", theirs.device_rows[locations.flatten().long()], steps.wanted)

        calls = [partial(theirs.step, items) for items in steps.drawn[2:]]
        return Contender(check_peer, Timed(calls, partial(theirs.restore, saved)))

    calls = [partial(buffers.step, *step) for step in steps.steps]
    work = swap_in_work(batch * misses, _ROW_BYTES, items=batch * TOPK)
    return Prepared(work, Contender(check, Timed(calls, steps.reset)), {"SGLang": sglang})


def _resolve(pool: PinnedPool, batch: int, misses: int) -> Prepared:
    steps = _Steps(pool, batch, misses)
    slots = torch.empty_like(steps.drawn[2])
    resolve = partial(steps.buffers.resolve, triton_op("resolve"))
    calls = [partial(resolve, *step, slots) for step in steps.steps]
    work = resolve_work(batch * TOPK, batch * HOT_SLOTS, batch * misses)
    check = partial(steps.check_resolve, misses)
    return Prepared(work, Contender(check, Timed(calls, steps.reset)))


def _release(pool: PinnedPool) -> Prepared:
    """Each call frees one sequence's hot buffer, which is full."""
    steps = _Steps(pool, _STEPS, 1)
    buffers = steps.buffers
    release_items = triton_op("release_items")

    def check() -> None:
        found = []
        for release in (release_items_ref, release_items):
            steps.reset()
            held = buffers.state.slot_item >= 0
            check_equal("slots in use", held, torch.ones_like(held))
            release(buffers.state, buffers.ranges, 1, 0)
            found.append(buffers.saved())
        for name, wanted in vars(found[0]).items():
            check_equal(name, getattr(found[1], name), wanted)

    calls = [
        partial(release_items, buffers.state, buffers.ranges, sequence, 0)
        for sequence in range(_STEPS)
    ]
    return Prepared(release_work(HOT_SLOTS), Contender(check, Timed(calls, steps.reset)))
