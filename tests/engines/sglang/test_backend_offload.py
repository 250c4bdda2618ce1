"""Our coordinator under SGLang's pool and allocator: every selected row is the one it should be."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hisparse_sidecar.errors import InvalidArgument, WrongState
from tests.engines.sglang.offload_world import (
    CONTEXT,
    DEVICE_PAGES,
    HOT,
    PAGE,
    REQUESTS,
    TOPK,
    Engine,
)


@pytest.fixture
def make(sglang: None) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make_one(*args: Any, **named: Any) -> Engine:
        made.append(Engine(*args, **named))
        return made[-1]

    yield make_one
    for engine in made:
        engine.coordinator.destroy()


@pytest.mark.parametrize("old_words", [False, True])
@pytest.mark.parametrize("kv", ["bf16", "fp8"])
def test_rows_are_found_with_a_hot_buffer_far_smaller_than_the_context(
    kv: str, old_words: bool, make: Callable[..., Engine]
) -> None:
    engine = make(kv)
    engine.start(500, 10, 129, old_words=old_words)
    engine.decode(70)
    engine.coordinator.check_integrity()
    stats = engine.coordinator.tier.stats()
    assert stats.slots_used == 3 * HOT
    for req in list(engine.running):
        engine.finish(req)
    engine.check_nothing_is_held()


def test_a_prompt_gives_its_pages_of_the_pool_back_before_it_decodes(
    make: Callable[..., Engine],
) -> None:
    engine = make()
    (req,) = engine.start(640)
    logical, device, _ = engine.free_tokens()
    assert (logical, device) == (engine.at_start[0] - 640, engine.at_start[1])
    engine.decode()
    engine.finish(req)
    engine.check_nothing_is_held()


def test_the_newest_rows_are_hot_from_the_first_step(make: Callable[..., Engine]) -> None:
    engine = make()
    engine.start(300)
    tier = engine.coordinator.tier
    state = tier._hot.of_group[0]
    assert (state.slot_item[state.slot_item >= 0] >= 300 - HOT).all()
    assert int((state.slot_item >= 0).sum()) == HOT
    slots = engine.prepare()
    newest = torch.arange(301 - TOPK, 301, dtype=torch.int32)[None]
    engine.forward(slots, ([newest] * 3).__getitem__)
    counts = tier.counters.read()
    assert [(one.items, one.misses, one.refused) for one in counts] == [(TOPK, 0, 0)] * 3


def test_padding_rows_touch_nothing(make: Callable[..., Engine]) -> None:
    engine = make()
    engine.start(200, 90)
    engine.decode(3, padding=2)
    engine.coordinator.check_integrity()


def test_a_pass_that_no_step_was_planned_for_touches_nothing(make: Callable[..., Engine]) -> None:
    engine = make()
    engine.start(200)
    engine.decode(2)
    before = [layer.clone() for layer in engine.memory]
    engine.coordinator.num_real_reqs.fill_(0)
    some = torch.zeros(4, TOPK, dtype=torch.int32)
    rows = torch.zeros(4, dtype=torch.int64)
    for layer in range(3):
        found = engine.coordinator.swap_in_selected_pages(rows, rows, some, layer)
        assert (found == -1).all()
    assert all(torch.equal(*pair) for pair in zip(before, engine.memory, strict=True))
    engine.decode(2)


def test_requests_come_and_go_between_steps(make: Callable[..., Engine]) -> None:
    engine = make()
    first, second = engine.start(300, 77)
    engine.decode(5)
    (third,) = engine.start(450)
    engine.decode(5)
    engine.finish(first)
    engine.decode(3)
    (fourth,) = engine.start(64)
    engine.decode(66)
    for req in (second, third, fourth):
        engine.finish(req)
    engine.check_nothing_is_held()


def test_a_retracted_request_is_computed_again(make: Callable[..., Engine]) -> None:
    engine = make()
    kept, gone = engine.start(200, 150)
    engine.decode(4)
    engine.retract(gone)
    engine.decode(2)
    again = engine.prefill(154)
    engine.admit(again)
    engine.collect()
    engine.decode(4)
    for req in (kept, again):
        engine.finish(req)
    engine.check_nothing_is_held()


def test_a_step_that_was_launched_ahead_may_have_a_finished_request(
    make: Callable[..., Engine],
) -> None:
    engine = make()
    (req,) = engine.start(100, new_tokens=4)
    engine.decode(3)  # the fourth token is out: the end
    slots = engine.prepare()
    engine.forward(slots)
    engine.finish(req)
    engine.check_nothing_is_held()


def test_a_request_that_ends_with_its_prefill_is_sglangs_own(make: Callable[..., Engine]) -> None:
    engine = make()
    req = engine.prefill(100)
    engine.finish(req)
    engine.check_nothing_is_held()


@pytest.mark.parametrize("call", ["abort_staging_request", "retract_req", "request_finished"])
def test_a_request_that_is_aborted_in_staging_leaves_nothing(
    call: str, make: Callable[..., Engine]
) -> None:
    engine = make()
    req, other = engine.prefill(100), engine.prefill(200)
    engine.admit(req, other)
    assert engine.coordinator.has_ongoing_staging()
    getattr(engine.coordinator, call)(req)
    assert not req.hisparse_staging
    engine.release(req)
    assert engine.collect() == [other]
    engine.decode(2)
    engine.finish(other)
    engine.check_nothing_is_held()


def test_a_request_waits_while_the_host_pool_is_full(make: Callable[..., Engine]) -> None:
    engine = make(ratio=1)
    pages = engine.coordinator.tier.stats().host_pages_total
    many = CONTEXT - 200
    holders = []
    while engine.coordinator.tier.stats().host_pages_free * PAGE >= CONTEXT:
        holders += engine.start(200, new_tokens=many)
    late, later = engine.prefill(128, many), engine.prefill(64, 10)
    taken = engine.free_tokens()
    engine.admit(late, later)
    assert engine.collect() == []
    assert engine.coordinator.has_ongoing_staging()
    assert engine.free_tokens() == taken  # it waits for the host, and holds no part of it
    engine.decode(2)
    engine.finish(holders.pop())
    assert engine.collect() == [late, later]
    engine.decode(3)
    for req in (*holders, late, later):
        engine.finish(req)
    engine.check_nothing_is_held()
    assert engine.free_tokens()[2] == pages


def test_a_request_that_waits_can_be_aborted(make: Callable[..., Engine]) -> None:
    engine = make(hot_share=0.05)  # one hot buffer
    (first,) = engine.start(100)
    waits = engine.prefill(100)
    engine.admit(waits)
    assert engine.collect() == []
    engine.retract(waits)
    engine.decode()
    engine.finish(first)
    engine.check_nothing_is_held()


def test_a_copy_that_fails_holds_nothing(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    req = engine.prefill(100)
    with monkeypatch.context() as patch:
        patch.setattr(engine.coordinator.tier, "_rows", [])  # no layer's memory
        with pytest.raises(ValueError, match="zip"):
            engine.admit(req)
    assert engine.coordinator.tier.stats().sequences == 0
    assert engine.collect() == [req]
    engine.decode(2)
    engine.finish(req)
    engine.check_nothing_is_held()


def test_a_request_that_says_no_length_is_admitted_for_the_context(
    make: Callable[..., Engine],
) -> None:
    engine = make()
    (req,) = engine.start(100, new_tokens=None)
    held = engine.at_start[2] - engine.free_tokens()[2]
    assert held == -(-(CONTEXT + 2) // PAGE)
    engine.finish(req)
    engine.check_nothing_is_held()


def test_layers_that_share_a_selection_share_its_slots(make: Callable[..., Engine]) -> None:
    engine = make(shared_index_layers=[False, True, False])
    engine.start(400)
    for _ in range(4):
        slots = engine.prepare()
        shared = engine.lists([engine.running[0].kv.kv_allocated_len])
        own = engine.lists([engine.running[0].kv.kv_allocated_len])
        engine.forward(slots, [shared, shared, own].__getitem__)
    assert len(engine.coordinator.tier._hot.of_group) == 2
    engine.coordinator.check_integrity()


def test_the_pool_may_be_cleared_when_it_is_idle(make: Callable[..., Engine]) -> None:
    engine = make()
    (req,) = engine.start(100)
    with pytest.raises(WrongState, match="was cleared, 1 requests are open"):
        engine.coordinator.pool_was_cleared()
    engine.finish(req)
    engine.allocator.clear()
    engine.coordinator.pool_was_cleared()
    engine.check_nothing_is_held()
    engine.start(300)
    engine.decode(3)


def test_another_length_than_sglangs_is_an_error(make: Callable[..., Engine]) -> None:
    engine = make()
    engine.start(100)
    engine.running[0].kv.kv_allocated_len += 1
    with pytest.raises(WrongState, match=r"have \[101\] tokens, SGLang says \[102\]"):
        engine.prepare()


def test_token_stats_count_rows_and_host_tokens(make: Callable[..., Engine]) -> None:
    engine = make()
    engine.start(100, new_tokens=26)
    engine.prefill(64)
    found = engine.coordinator.get_token_stats()
    assert (found.device_tokens, found.host_tokens) == (HOT + 64, 2 * PAGE)
    assert found.device_token_usage == (HOT + 64) / (DEVICE_PAGES * PAGE)
    assert 0 < found.host_token_usage < 1


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"num_draft_tokens": 3}, "has 3 draft tokens, offload needs 0"),
        ({"device_buffer_size": TOPK - 1}, f"is {TOPK - 1}, top_k needs {TOPK}"),
        ({"hot_share": 0.01}, f"is 0, a hot buffer of {HOT} and a row for each of {REQUESTS + 1}"),
        ({"hot_share": 1}, "hot_share is 1, must be above 0"),
    ],
)
def test_what_does_not_fit_fails_the_start(
    changed: dict[str, Any], match: str, make: Callable[..., Engine]
) -> None:
    with pytest.raises(InvalidArgument, match=match):
        make(**changed)
