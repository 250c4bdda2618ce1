"""Offload's hooks in SGLang's scheduler: requests in staging, prompts that are too long, room."""

import inspect
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hisparse_sidecar.engines.sglang.offload import scheduler_hooks
from hisparse_sidecar.engines.sglang.offload.scheduler_hooks import (
    SCHEDULER_HOOKS,
    most_prompt_tokens,
)
from hisparse_sidecar.engines.sglang.targets import SCHEDULER_TARGETS, check_targets, resolve
from hisparse_sidecar.errors import InvalidArgument
from tests.engines.sglang.scheduler_world import SchedulerWorld
from tests.engines.sglang.world import server_args

OFFLOAD = ("--attention-backend", "hisparse", "--enable-hisparse", "--disable-radix-cache")
LATE, EARLY = 1e-6, 1e12  # when a request's first pass began, by a clock that is between


@pytest.fixture
def make(sglang: None, tmp_path: Path) -> Iterator[Callable[..., SchedulerWorld]]:
    server_args(tmp_path, *OFFLOAD)
    made: list[SchedulerWorld] = []

    def make_one(**named: Any) -> SchedulerWorld:
        made.append(SchedulerWorld(**named))
        return made[-1]

    yield make_one
    for world in made:
        world.coordinator.destroy()


def abort_req(rid: str = "", message: str | None = None, *, everyone: bool = False) -> Any:
    from sglang.srt.managers.io_struct import AbortReq

    return AbortReq(rid=rid, abort_all=everyone, abort_message=message)


def pause(mode: str) -> Any:
    from sglang.srt.managers.io_struct import PauseGenerationReqInput

    return PauseGenerationReqInput(mode=mode)


# -- between prefill and decode -----------------------------------------------------------------


def told(world: SchedulerWorld) -> list[tuple[str, str, int | None]]:
    """What clients are told of requests that have ended."""
    reasons = [(sent.rid, sent.finished_reason) for sent in world.sent]
    return [(rid, reason["message"], reason["status_code"]) for rid, reason in reasons]


@pytest.mark.parametrize("hot_share", [0.05, 0.5])  # they wait, or are on their way
def test_a_request_that_is_aborted_in_staging_ends_before_the_next_pass(
    hot_share: float, make: Callable[..., SchedulerWorld]
) -> None:
    world = make(hot_share=hot_share)
    running, wanted, other = (world.prefill(tokens, 900) for tokens in (400, 100, 200))
    world.admit(running)
    world.run(running)
    world.admit(wanted, other)
    world.scheduler.abort_request(abort_req("request-100", "for a reason"))
    assert (wanted.to_finish.message, other.to_finish) == ("for a reason", None)
    for _ in range(2):  # once, and nothing is left of it
        world.scheduler.process_pending_chunked_abort()
        assert told(world) == [("request-100", "for a reason", 503)]
    assert (wanted.finished(), wanted.to_finish, wanted.hisparse_staging) == (True, None, False)
    assert [one.req for one in world.coordinator.ack_staging_queue] == [other]
    world.coordinator.check_integrity()
    world.scheduler.abort_request(abort_req(everyone=True))
    world.scheduler.process_pending_chunked_abort()
    assert told(world)[1:] == [("request-200", "Aborted", None)]
    assert running.to_finish is not None  # as SGLang does it: after one more step
    world.finish(running)
    world.check_nothing_is_held()


def test_an_aborted_request_takes_no_room_from_one_that_lives(
    make: Callable[..., SchedulerWorld],
) -> None:
    world = make(ratio=1)
    running = [world.prefill(*sizes) for sizes in ((64, 900), (63, 900), (100, 100))]
    world.admit(*running)
    world.run(*running)
    gone, small = world.prefill(950, 1), world.prefill(65, 1)
    world.admit(gone, small)
    assert [one.mark for one in world.coordinator.ack_staging_queue] == [None, None]
    world.scheduler.abort_request(abort_req("request-950"))
    late = world.prefill(66, 1)
    world.admit(late)  # a pass that was launched ahead ends: before the next one begins
    world.scheduler.process_pending_chunked_abort()
    world.run(small, late)
    for req in (*running, small, late):
        world.finish(req)
    world.check_nothing_is_held()


def test_what_a_pause_finds_aborted_ends_and_is_not_computed_again(
    make: Callable[..., SchedulerWorld],
) -> None:
    world = make(hot_share=0.05)
    running, gone, other = (world.prefill(tokens, 10) for tokens in (100, 200, 150))
    world.admit(running)
    world.run(running)
    world.admit(gone, other)
    world.scheduler.abort_request(abort_req("request-200"))
    world.scheduler.pause_generation(pause("in_place"))
    assert world.sent == []
    world.scheduler.pause_generation(pause("retract"))
    assert [req.rid for req in world.scheduler.waiting_queue] == ["request-100", "request-150"]
    assert told(world) == [("request-200", "Aborted", None)]
    world.check_nothing_is_held()


@pytest.mark.parametrize("hot_share", [0.05, 0.5])  # they wait, or are on their way
def test_a_pause_retracts_requests_between_prefill_and_decode(
    hot_share: float, make: Callable[..., SchedulerWorld]
) -> None:
    world = make(hot_share=hot_share)
    running, first, second = (world.prefill(tokens, 10) for tokens in (100, 200, 150))
    world.admit(running)
    world.run(running)
    world.admit(first, second)
    world.scheduler.pause_generation(pause("in_place"))
    assert [one.req for one in world.coordinator.ack_staging_queue] == [first, second]
    world.scheduler.pause_generation(pause("retract"))
    queue = world.scheduler.waiting_queue
    assert [req.rid for req in queue] == ["request-100", "request-200", "request-150"]
    assert all(req.is_retracted and not req.hisparse_staging for req in queue)
    assert not world.coordinator.has_ongoing_staging()
    assert world.sent == []
    world.check_nothing_is_held()


def test_what_a_pause_retracts_and_finds_no_room_any_more_is_ended(
    make: Callable[..., SchedulerWorld],
) -> None:
    world = make()
    rows = world.coordinator.prompt_rows
    left = rows - 900 - 1 - 64
    fits, long = world.prefill(899, left + 1), world.prefill(900, left + 1)
    fits.rid, long.rid = "10", "1"
    world.admit(fits, long)
    world.scheduler.pause_generation(pause("retract"))
    assert world.scheduler.waiting_queue == [fits]  # whose name begins as the other's
    assert [sent.rid for sent in world.sent] == [long.rid]
    world.check_nothing_is_held()


def test_requests_that_wait_for_too_long_end(
    make: Callable[..., SchedulerWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make(hot_share=0.05)
    assert LATE < time.perf_counter() - 0.5 < EARLY
    running, late, early = (world.prefill(tokens, 900) for tokens in (100, 200, 150))
    world.admit(running)
    world.run(running)
    world.admit(late, early)
    late.time_stats.forward_entry_time, early.time_stats.forward_entry_time = LATE, EARLY
    assert world.coordinator.collect_ready_reqs() == []
    assert late.to_finish is None  # SGLang has no limit
    monkeypatch.setenv("SGLANG_REQ_RUNNING_TIMEOUT", "0.5")
    assert world.coordinator.collect_ready_reqs() == []
    assert (early.to_finish, late.to_finish.status_code) == (None, 503)
    world.finish(running)
    world.admit(last := world.prefill(50, 10))  # looks for room, and the late one wants none
    assert [one.mark is None for one in world.coordinator.ack_staging_queue] == [True, False, True]
    world.scheduler.process_pending_chunked_abort()
    assert told(world) == [(late.rid, "Request running timeout reached.", 503)]
    world.run(early)
    for req in (early, last):
        world.finish(req)
    world.check_nothing_is_held()


def test_an_end_that_a_request_has_already_stays(
    make: Callable[..., SchedulerWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make(hot_share=0.05)
    running, late = world.prefill(100), world.prefill(200)
    world.admit(running, late)
    late.time_stats.forward_entry_time = LATE
    world.scheduler.abort_request(abort_req(late.rid, "first"))
    monkeypatch.setenv("SGLANG_REQ_RUNNING_TIMEOUT", "0.5")
    world.coordinator.collect_ready_reqs()
    world.scheduler.abort_request(abort_req(late.rid))
    assert late.to_finish.message == "first"


# -- room for prompts ---------------------------------------------------------------------------


def make_adder(world: SchedulerWorld, *running: Any) -> Any:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.schedule_policy import PrefillAdder

    batch = ScheduleBatch(reqs=list(running))
    args = world.tree_cache, world.engine.allocator, batch, 0.5, 10**6, None
    return PrefillAdder(64, *args)


def test_running_requests_hold_no_prompt_back_where_slots_suffice(
    make: Callable[..., SchedulerWorld],
) -> None:
    world = make()
    running = world.prefill(100, 900), world.prefill(200, 800)
    world.admit(*running)
    world.run(*running)
    adder = make_adder(world, *running)
    assert adder.rem_total_tokens == world.coordinator.prompt_rows
    assert adder.cur_rem_tokens == world.coordinator.prompt_rows


def test_prompts_leave_the_slots_that_requests_will_still_write(
    make: Callable[..., SchedulerWorld],
) -> None:
    world = make()
    running, staged = world.prefill(100, 900), world.prefill(200, 800)
    world.admit(running)
    world.run(running)
    world.admit(staged)
    taken = world.engine.allocator.logical_attn_allocator.alloc(4800)
    slots, rows, _ = world.engine.free_tokens()
    wanted = (899 + 799) // 2  # one token of each is out, and half are expected
    assert rows > slots - wanted
    assert make_adder(world, running).rem_total_tokens == slots - wanted
    world.engine.allocator.logical_attn_allocator.free(taken)


def test_a_request_that_ignores_its_end_is_let_in_by_the_estimate_of_others(
    make: Callable[..., SchedulerWorld],
) -> None:
    world = make()
    running = [world.prefill(tokens, 2000) for tokens in (100, 200)]
    world.admit(*running)
    world.run(*running)
    req = world.prefill(64, 1000)
    for one in (*running, req):
        one.sampling_params.ignore_eos = True
    req.init_next_round_input()
    adder = make_adder(world, *running)
    stock = inspect.unwrap(type(adder).add_one_req)
    assert stock(adder, req, False, None).name == "NO_TOKEN"
    adder.add_one_req(req, has_chunked_req=False, truncation_align_size=None)  # as SGLang does
    assert adder.can_run_list == [req]
    assert req.sampling_params.ignore_eos


def test_how_a_request_ends_is_put_back_where_the_scheduler_fails() -> None:
    def fail(*_: Any) -> None:
        raise OSError("no room")

    req = SimpleNamespace(sampling_params=SimpleNamespace(ignore_eos=True))
    with pytest.raises(OSError, match="no room"):
        SCHEDULER_HOOKS["PrefillAdder.add_one_req"](fail)(None, req, False, None)
    assert req.sampling_params.ignore_eos


def _retracted(prompt: int, output: int, most_new: int) -> Any:
    return SimpleNamespace(
        origin_input_ids=[0] * prompt,
        output_ids=[0] * output,
        sampling_params=SimpleNamespace(max_new_tokens=most_new),
        to_finish=None,
    )


def test_a_retracted_request_that_finds_no_room_any_more_is_ended(
    make: Callable[..., SchedulerWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_hooks, "_most_estimated", lambda: 1000)
    coordinator = make().coordinator
    most = coordinator.prompt_rows - 1000 - 64
    short, long = _retracted(most - 101, 100, 5000), _retracted(most - 100, 100, 5000)
    last = _retracted(9000, 1000, 1000)

    def retract_decode(self: Any, server_args: Any = None) -> Any:
        return [short, long], 0.5, [last]

    hook = SCHEDULER_HOOKS["ScheduleBatch.retract_decode"](retract_decode)
    batch = SimpleNamespace(hisparse_coordinator=coordinator)
    assert hook(batch, server_args=None) == ([short], 0.5, [last, long])  # 0.5.17
    assert short.to_finish is last.to_finish is None
    rows = coordinator.prompt_rows
    assert f"needs {rows} rows for its prompt, of {rows}" in long.to_finish.message
    batch.hisparse_coordinator = None
    assert hook(batch) == ([short, long], 0.5, [last])


def test_prompts_that_never_fit_are_refused_by_sglang(
    make: Callable[..., SchedulerWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_hooks, "_most_estimated", lambda: 1000)
    coordinator = make().coordinator
    told = 1, 2, 3, 4, 2000, 1995, 6
    hook = SCHEDULER_HOOKS["TpModelWorker.get_worker_info"](lambda self: told)
    runner = SimpleNamespace(hisparse_coordinator=coordinator)
    most = coordinator.prompt_rows - 1000 - 64
    assert most < 1995
    assert hook(SimpleNamespace(model_runner=runner)) == (1, 2, 3, 4, 2000, most, 6)
    runner.hisparse_coordinator = None
    assert hook(SimpleNamespace(model_runner=runner)) == told


def test_hot_buffers_that_leave_no_room_for_a_prompt_fail_the_start() -> None:
    with pytest.raises(InvalidArgument, match=r"leave 4223 rows .* needs 4224"):
        most_prompt_tokens(4223)
    assert most_prompt_tokens(4224) == 64


# -- log probabilities --------------------------------------------------------------------------


def test_a_decode_batch_has_the_tokens_whose_log_probabilities_were_asked_for(
    make: Callable[..., SchedulerWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.managers import scheduler as module

    world = make()
    asks, only_own, nothing = (world.prefill(tokens) for tokens in (100, 200, 150))
    asks.logprob.token_ids_logprob, asks.return_logprob = [3, 5], True
    only_own.return_logprob = True
    requests = [asks, only_own, nothing]
    world.admit(*requests)
    world.run(*requests)
    world.give_what_batches_need(monkeypatch, module)
    batch = world.scheduler._build_hisparse_decode_batch(requests)
    assert batch.token_ids_logprobs == [[3, 5], None, None]
    assert batch.top_logprobs_nums == [0, 0, 0]
    stock = inspect.unwrap(type(world.scheduler)._build_hisparse_decode_batch)
    wrong = stock(world.scheduler, requests).token_ids_logprobs
    assert [len(listed) for listed in wrong] == [100, 200, 150]  # SGLang's own: see the hook
    batch = world.scheduler._build_hisparse_decode_batch([nothing])
    assert not batch.return_logprob
    assert batch.token_ids_logprobs is None


# -- SGLang as we know it -----------------------------------------------------------------------


def test_scheduler_and_worker_of_the_installed_version_are_as_we_know_them(sglang: None) -> None:
    check_targets(SCHEDULER_TARGETS)
    assert set(SCHEDULER_HOOKS) == {t.name for t in SCHEDULER_TARGETS if t.is_replaced}
    from sglang.srt.managers.tp_worker import TpModelWorker

    source = inspect.getsource(inspect.unwrap(TpModelWorker.get_worker_info))
    names = source.split("return (")[1].split(",")
    assert "max_req_len" in names[4]
    assert any(word in names[5] for word in ("max_req_input_len", "max_req_len - 5"))


@pytest.mark.parametrize("target", SCHEDULER_TARGETS, ids=lambda target: target.name)
def test_a_part_of_the_scheduler_that_has_changed_is_named(
    target: Any, sglang: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, _ = resolve(target)
    monkeypatch.setattr(owner, name, lambda self, another: None)
    with pytest.raises(InvalidArgument, match=rf"{target.name} is \(self, another\), needs \("):
        check_targets(SCHEDULER_TARGETS)
