"""Offload's hooks in SGLang's scheduler: aborts that reach staging, prompts that are too long."""

import inspect
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hisparse_sidecar.engines.sglang import scheduler_hooks
from hisparse_sidecar.engines.sglang.coordinator import HiSparseCoordinator
from hisparse_sidecar.engines.sglang.targets import parameters_of
from hisparse_sidecar.errors import InvalidArgument, WrongState
from tests.engines.sglang.offload_world import Engine


def test_an_abort_reaches_requests_between_prefill_and_decode(
    sglang: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []

    class Scheduler:
        def __init__(self, coordinator: HiSparseCoordinator) -> None:
            self.hisparse_coordinator = coordinator

        def abort_request(self, recv_req: Any) -> None:
            heard.append(recv_req)

    schedulers = ModuleType("sglang.srt.managers.scheduler")
    monkeypatch.setattr(schedulers, "Scheduler", Scheduler, raising=False)
    monkeypatch.setitem(sys.modules, schedulers.__name__, schedulers)
    scheduler_hooks.hear_aborts()
    engine = Engine(hot_share=0.05)  # one hot buffer
    scheduler = Scheduler(engine.coordinator)
    (first,) = engine.start(400)
    wanted, other = engine.prefill(100, 900), engine.prefill(200)
    engine.admit(wanted, other)
    abort = SimpleNamespace(abort_all=False, rid="request-100")
    scheduler.abort_request(abort)
    assert heard == [abort]
    assert (wanted.to_finish is not None, other.to_finish) == (True, None)
    free = engine.free_tokens()[2]
    engine.finish(first)
    assert engine.collect() == [wanted]
    held = free + 10 - engine.free_tokens()[2]
    assert held == 2  # pages for its prompt and a last step, not for 900 tokens
    engine.decode()
    engine.finish(wanted)
    scheduler.abort_request(SimpleNamespace(abort_all=True, rid=""))
    assert other.to_finish is not None
    assert engine.collect() == [other]
    engine.finish(other)
    engine.check_nothing_is_held()
    engine.coordinator.destroy()


def test_a_scheduler_that_is_not_as_we_know_it_fails_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedulers = ModuleType("sglang.srt.managers.scheduler")
    made = type("Scheduler", (), {"abort_request": lambda self, rid: None})
    monkeypatch.setattr(schedulers, "Scheduler", made, raising=False)
    monkeypatch.setitem(sys.modules, schedulers.__name__, schedulers)
    with pytest.raises(WrongState, match=r"abort_request is \(self, rid\), needs \(self, recv_req"):
        scheduler_hooks.hear_aborts()


def test_worker_and_scheduler_are_as_we_know_them(sglang: None) -> None:
    workers = pytest.importorskip("sglang.srt.managers.tp_worker", exc_type=ImportError)
    assert parameters_of(inspect.signature(workers.TpModelWorker.get_worker_info)) == "(self)"
    names = inspect.getsource(workers.TpModelWorker.get_worker_info).split("return (")[1]
    from sglang.srt.managers.scheduler import Scheduler

    assert parameters_of(inspect.signature(Scheduler.abort_request)) == "(self, recv_req)"
    assert "max_req_len" in names.split(",")[4]
    assert any(word in names.split(",")[5] for word in ("max_req_input_len", "max_req_len - 5"))


def test_hot_buffers_that_leave_no_room_for_a_prompt_fail_the_start() -> None:
    with pytest.raises(InvalidArgument, match=r"leave 4223 rows .* needs 4224"):
        scheduler_hooks.most_prompt_tokens(4223)
    assert scheduler_hooks.most_prompt_tokens(4224) == 64
