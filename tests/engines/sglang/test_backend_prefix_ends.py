"""The prefix cache under pressure and aborts: it makes room, and nothing that is loaded is left."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from hisparse_sidecar.engines.sglang.offload.requests import end_as_unavailable
from tests.engines.sglang.offload_world import CONTEXT, PAGE, REQUESTS
from tests.engines.sglang.prefix_world import CachingEngine, prompt

Make = Callable[..., CachingEngine]


def test_cached_pages_go_before_a_request_waits(caching: Make) -> None:
    engine = caching(ratio=1)
    for seed in range(3):
        engine.finish(*engine.start_tokens(prompt(640, seed), new_tokens=30))
    assert engine.tree.total_size() == 3 * 640
    pages = engine.coordinator.tier.stats().host_pages_total
    (first,) = engine.start_tokens(prompt(64, 7), new_tokens=900)
    (second,) = engine.start_tokens(prompt(64, 8), new_tokens=900)
    assert engine.tree.total_size() < 3 * 640
    engine.check_all()
    engine.decode(3)
    for req in (first, second):
        engine.finish(req)
    engine.check_only_the_tree_holds()
    assert pages == engine.at_start[2]


def test_a_prefix_in_use_is_not_evicted(caching: Make) -> None:
    engine = caching(ratio=1)
    engine.finish(*engine.start_tokens(prompt(640), new_tokens=30))
    req = engine.prefill_tokens([*prompt(640), 1], new_tokens=30)
    engine.tree.make_host_room(1000)
    assert engine.tree.total_size() == 640
    engine.check_prefill(req, engine.computed(req), req.rows)
    engine.stage(req)
    engine.collect()
    engine.tree.make_host_room(1000)
    engine.decode(20)
    engine.finish(req)
    engine.tree.make_host_room(1000)
    assert engine.tree.total_size() == 0
    engine.check_only_the_tree_holds()


def test_decoding_requests_get_slots_of_the_cache(caching: Make) -> None:
    engine = caching(ratio=1)
    engine.finish(*engine.start_tokens(prompt(900, 1), new_tokens=30))
    engine.finish(*engine.start_tokens(prompt(900, 2), new_tokens=30))
    slots = engine.allocator.logical_attn_allocator
    free = slots.available_size()
    assert free < 1000
    assert engine.coordinator.has_slots_for(1000)
    assert slots.available_size() >= 1000
    assert not engine.coordinator.has_slots_for(1 << 20)
    assert engine.tree.total_size() == 0
    engine.check_only_the_tree_holds()


def test_the_cache_counts_for_no_more_room_than_its_slots_make(caching: Make) -> None:
    engine = caching(ratio=1)
    tree, allocator = engine.tree, engine.allocator
    room = engine.at_start[1]
    for seed in range(2):
        engine.finish(*engine.start_tokens(prompt(900, seed), new_tokens=30))
    assert allocator.logical_attn_allocator.available_size() < room
    assert allocator.available_size() + tree.evictable_size() == room


def test_cached_slots_are_room_for_what_requests_will_still_write(caching: Make) -> None:
    engine = caching(ratio=2)
    (running,) = engine.start_tokens(prompt(64, 9), new_tokens=900)
    for seed in range(7):
        engine.finish(*engine.start_tokens(prompt(704, seed), new_tokens=30))
    slots, cached = engine.allocator.logical_attn_allocator, engine.tree.evictable_size_
    free, rows, _ = engine.free_tokens()
    assert free < 899 < rows < free + cached - 899  # as after a while: most slots are cached
    assert engine.adder(running).rem_total_tokens == rows
    left = rows + 640
    engine.tree.make_slot_room(free + cached - left)
    taken = slots.alloc(free + cached - left)
    assert engine.adder(running).rem_total_tokens == left - 899
    slots.free(taken)


def test_eviction_for_a_pass_frees_the_slots_that_are_missing(caching: Make) -> None:
    from sglang.srt.mem_cache.common import evict_from_tree_cache

    engine = caching(ratio=1)
    for seed in range(4):
        engine.finish(*engine.start_tokens(prompt(448, seed), new_tokens=10))
    free = engine.allocator.logical_attn_allocator.available_size()
    rows = engine.allocator.hisparse_attn_allocator
    held = rows.alloc(rows.available_size() - PAGE)
    evict_from_tree_cache(engine.tree, free)  # rows are short, which the tree has none of
    rows.free(held)
    assert engine.tree.total_size() == 4 * 448
    evict_from_tree_cache(engine.tree, free + 1)
    assert engine.tree.total_size() == 3 * 448
    engine.check_only_the_tree_holds()


@pytest.mark.parametrize("call", ["abort_staging_request", "retract_req", "request_finished"])
def test_a_request_that_is_aborted_in_staging_lets_its_prefix_go(call: str, caching: Make) -> None:
    engine = caching()
    engine.finish(*engine.start_tokens(prompt(300)))
    both = [engine.prefill_tokens([*prompt(300), token]) for token in (1, 2)]
    engine.stage(*both)
    getattr(engine.coordinator, call)(both[0])
    engine.release_aborted(both[0])
    assert engine.collect() == [both[1]]
    engine.decode(2)
    engine.finish(both[1])
    engine.check_only_the_tree_holds()


def test_a_request_that_is_aborted_between_chunks_lets_its_prefix_go(caching: Make) -> None:
    engine = caching()
    engine.finish(*engine.start_tokens(prompt(300)))
    req = engine.request(prompt(600))
    engine.let_in(req, chunk=128)
    engine.compute(req)
    engine.stash(req)
    engine.release_aborted(req)
    engine.check_only_the_tree_holds()


def test_a_request_that_was_loaded_and_not_let_in_holds_nothing(caching: Make) -> None:
    engine = caching()
    engine.finish(*engine.start_tokens(prompt(300)))
    req = engine.request([*prompt(300), 1])
    for _ in range(2):  # each round of the scheduler loads it anew, and lets it wait
        engine.only_load(req)
        assert engine.free_tokens()[1] == engine.at_start[1] - 256
    engine.check_all()
    assert engine.collect() == []
    engine.check_only_the_tree_holds()
    assert engine.let_in(req) == [req]
    engine.compute(req)


def test_a_step_that_was_launched_ahead_may_have_a_finished_request(caching: Make) -> None:
    engine = caching()
    (req,) = engine.start_tokens(prompt(120), new_tokens=8)
    engine.decode(7)
    assert engine.allocated(req) == 127
    engine.forward(engine.prepare())  # of the last token, whose row fills the second page
    engine.set_lengths(req, 128)
    engine.finish(req)
    assert engine.tree.total_size() == 2 * PAGE
    engine.check_only_the_tree_holds()


def test_prefixes_of_requests_that_wait_do_not_block_the_first(caching: Make) -> None:
    engine = caching(ratio=1, hot_share=0.05)  # one hot buffer
    for seed in range(3):
        engine.finish(*engine.start_tokens(prompt(704, seed), new_tokens=10))
    first = engine.prefill_tokens(prompt(60, 7), new_tokens=900)
    others = [engine.prefill_tokens([*prompt(704, n), 1], new_tokens=30) for n in range(3)]
    assert all(engine.extent(req)[0] == 704 for req in others)
    assert engine.free_tokens()[2] < -(-962 // PAGE)  # as many as the first wants
    engine.stage(first, *others)
    assert engine.collect() == [first]
    engine.check_all()
    late = engine.request([*prompt(704), 1])
    late.init_next_round_input(engine.tree)
    assert late.host_hit_length == 0  # rows that are in the pool alone are found by nobody
    engine.decode(5)
    engine.finish(first)
    for req in others:
        assert engine.collect() == [req]
        engine.check_all()
        engine.decode(20)
        engine.finish(req)
    engine.check_only_the_tree_holds()
    again = engine.prefill_tokens([*prompt(704, 2), 1])
    assert engine.extent(again)[0] == 704


class Lives:
    """Requests that come and go at random, with prompts that begin as others' did."""

    def __init__(self, engine: CachingEngine, seed: int) -> None:
        self.engine, self.random = engine, Random(seed)
        self.known, self.waiting = [prompt(200, 1)], list[Any]()

    def tokens(self) -> list[int]:
        base = self.random.choice(self.known)
        own = prompt(self.random.randrange(1, 200), self.random.randrange(1 << 20))
        return [*base[: self.random.randrange(len(base) + 1)], *own][: CONTEXT // 2]

    def open(self) -> None:
        req = self.engine.request(self.tokens(), new_tokens=self.random.randrange(10, 60))
        has_row = len(self.engine.running) + len(self.waiting) < REQUESTS - 1
        if has_row and self.engine.let_in(req):
            self.engine.compute(req)
            self.engine.stage(req)
            self.waiting.append(req)

    def decode(self) -> None:
        left = [left_of(req) for req in self.engine.running]
        if left:
            self.engine.decode(min(*left, self.random.randrange(1, 30), 30))

    def finish(self) -> None:
        if self.engine.running:
            req = self.random.choice(self.engine.running)
            self.known.append(self.engine.computed(req))
            self.engine.finish(req)

    def retract(self) -> None:
        if self.engine.running:
            self.engine.retract(self.random.choice(self.engine.running))

    def abort(self) -> None:
        """One in staging is marked, others may still come, and it ends before the next pass."""
        if self.waiting:
            req = self.waiting.pop(self.random.randrange(len(self.waiting)))
            end_as_unavailable(req, "by chance")
            self.random.choice((self.open, self.decode, self.finish))()
            self.engine.end_marked()
            assert req.finished()

    def collect(self) -> None:
        ready = self.engine.collect()
        self.waiting = [one for one in self.waiting if all(one is not two for two in ready)]

    def act(self, turns: int, *more: Callable[[], None]) -> Iterator[None]:
        """So many deeds, by chance, and after each what time brings."""
        deeds = self.open, self.open, self.decode, self.decode, self.finish, self.retract
        for _ in range(turns):
            self.random.choice((*deeds, self.abort, *more))()
            self.collect()
            self.finish_all(at_their_end=True)
            yield

    def end(self) -> None:
        """All of them end, and so do cached pages: nothing is held."""
        while self.engine.running or self.waiting:
            self.finish_all(at_their_end=False)
            self.collect()
        self.engine.check_only_the_tree_holds()
        self.engine.tree.make_host_room(1 << 20)
        self.engine.check_nothing_is_held()

    def finish_all(self, *, at_their_end: bool) -> None:
        for req in list(self.engine.running):
            if not at_their_end or not left_of(req):
                self.engine.finish(req)


def left_of(req: Any) -> int:
    return int(req.sampling_params.max_new_tokens - len(req.output_ids))


@pytest.mark.parametrize("seed", range(6))
def test_random_lives_find_exact_rows_and_leave_nothing(seed: int, caching: Make) -> None:
    engine = caching(ratio=1 + seed % 2)
    lives = Lives(engine, seed)
    for _ in lives.act(60):
        engine.check_all()
    lives.end()
