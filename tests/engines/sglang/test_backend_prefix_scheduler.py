"""The prefix cache under SGLang's own scheduler: pauses, aborts and timeouts of loaded prefixes."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.engines.sglang.prefix_world import CachingEngine, prompt
from tests.engines.sglang.scheduler_world import SchedulerWorld

Make = Callable[..., CachingEngine]


def world_of(engine: CachingEngine, *ends: int) -> tuple[SchedulerWorld, list[Any]]:
    """A scheduler whose requests in staging have each loaded the same prefix; one decodes."""
    engine.finish(*engine.start_tokens(prompt(300)))
    world = SchedulerWorld(engine)
    (running,) = engine.start_tokens(prompt(100, 1), new_tokens=900)
    world.scheduler.running_batch.reqs = [running]
    staged = [engine.prefill_tokens([*prompt(300), end]) for end in ends]
    for number, req in enumerate(staged):
        req.rid = f"staged-{number}"
    engine.stage(*staged)
    engine.check_all()
    return world, [running, *staged]


@pytest.mark.parametrize("hot_share", [0.05, 0.5])  # they wait, or are on their way
def test_a_pause_lets_loaded_prefixes_go(hot_share: float, caching: Make) -> None:
    from sglang.srt.managers.io_struct import PauseGenerationReqInput

    engine = caching(hot_share=hot_share)
    world, requests = world_of(engine, 1, 2)
    world.scheduler.pause_generation(PauseGenerationReqInput(mode="retract"))
    assert world.scheduler.waiting_queue == requests
    engine.running = []
    engine.check_only_the_tree_holds()
    again = requests[1]
    assert engine.let_in(again) == [again]
    assert engine.extent(again) == (256, 302)
    engine.compute(again)
    engine.stage(again)
    assert engine.collect() == [again]
    engine.decode(30)
    engine.finish(again)
    engine.check_only_the_tree_holds()


def test_a_pool_that_is_flushed_in_a_pause_has_nothing_of_the_cache(caching: Make) -> None:
    from sglang.srt.managers.io_struct import PauseGenerationReqInput

    engine = caching()
    world, requests = world_of(engine, 1, 2)
    world.scheduler.pause_generation(PauseGenerationReqInput(mode="retract"))
    engine.running = []
    engine.only_load(requests[2])  # and let it wait, as SGLang 0.5.17 may
    engine.flush()
    engine.check_nothing_is_held()
    engine.collect()
    assert engine.let_in(requests[2]) == [requests[2]]
    assert engine.extent(requests[2])[0] == 0
    engine.compute(requests[2])
    engine.stage(requests[2])
    assert engine.collect() == [requests[2]]
    engine.decode(3)
    engine.finish(requests[2])
    engine.check_only_the_tree_holds()


def test_requests_past_their_time_let_loaded_prefixes_go(
    caching: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = caching(hot_share=0.05)  # one hot buffer
    world, (running, late, other) = world_of(engine, 1, 2)
    late.time_stats.forward_entry_time = 1e-6
    assert time.perf_counter() > 1
    monkeypatch.setenv("SGLANG_REQ_RUNNING_TIMEOUT", "0.5")
    assert engine.collect() == []
    assert late.to_finish.status_code == 503
    world.scheduler.process_pending_chunked_abort()
    assert [sent.rid for sent in world.sent] == [late.rid]
    engine.check_all()
    engine.finish(running)
    assert engine.collect() == [other]
    engine.decode()
    engine.finish(other)
    engine.check_only_the_tree_holds()


@pytest.mark.parametrize("hot_share", [0.05, 0.5])  # they wait, or are on their way
def test_an_abort_of_a_request_with_a_loaded_prefix_lets_it_go(
    hot_share: float, caching: Make
) -> None:
    from sglang.srt.managers.io_struct import AbortReq

    engine = caching(hot_share=hot_share)
    world, (running, wanted, other) = world_of(engine, 1, 2)
    held = engine.tree.total_size()
    world.scheduler.abort_request(AbortReq(rid=wanted.rid))
    world.scheduler.process_pending_chunked_abort()
    assert [sent.rid for sent in world.sent] == [wanted.rid]
    engine.check_all()
    assert engine.tree.total_size() == held  # nothing of it is cached, and nothing is lost
    engine.finish(running)
    assert engine.collect() == [other]
    engine.decode()
    engine.finish(other)
    engine.check_only_the_tree_holds()
