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


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, name: str, made: type) -> None:
    """A module of SGLang's managers that has this class alone."""
    found = ModuleType(f"sglang.srt.managers.{module}")
    monkeypatch.setattr(found, name, made, raising=False)
    monkeypatch.setitem(sys.modules, found.__name__, found)


def test_an_abort_reaches_requests_between_prefill_and_decode(
    sglang: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []

    class Scheduler:
        def __init__(self, coordinator: HiSparseCoordinator) -> None:
            self.hisparse_coordinator = coordinator

        def abort_request(self, recv_req: Any) -> None:
            heard.append(recv_req)

    stand_in(monkeypatch, "scheduler", "Scheduler", Scheduler)
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


def test_a_request_that_ignores_its_end_is_let_in_by_the_estimate_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class PrefillAdder:
        def add_one_req(
            self, req: Any, has_chunked_req: bool, truncation_align_size: int | None
        ) -> tuple[bool, bool, int | None]:
            if truncation_align_size == 0:
                raise OSError("no room")
            return req.sampling_params.ignore_eos, has_chunked_req, truncation_align_size

    stand_in(monkeypatch, "schedule_policy", "PrefillAdder", PrefillAdder)
    scheduler_hooks.admit_without_eos()
    req = SimpleNamespace(sampling_params=SimpleNamespace(ignore_eos=True))
    named = {"has_chunked_req": True, "truncation_align_size": 64}  # as SGLang calls it
    assert PrefillAdder().add_one_req(req, **named) == (False, True, 64)
    with pytest.raises(OSError, match="no room"):
        PrefillAdder().add_one_req(req, True, 0)
    assert req.sampling_params.ignore_eos


def _retracted(prompt: int, output: int, most_new: int) -> Any:
    return SimpleNamespace(
        origin_input_ids=[0] * prompt,
        output_ids=[0] * output,
        sampling_params=SimpleNamespace(max_new_tokens=most_new),
        to_finish=None,
    )


def test_a_retracted_request_that_finds_no_room_any_more_is_ended(
    sglang: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = _retracted(5000, 836, 5000), _retracted(5000, 837, 5000)
    last = _retracted(9000, 1000, 1000)

    class ScheduleBatch:
        def retract_decode(self, server_args: Any) -> Any:
            return [short, long], 0.5, [last]

    from sglang.srt.managers import schedule_batch

    monkeypatch.setattr(schedule_batch, "ScheduleBatch", ScheduleBatch)
    scheduler_hooks.give_up_long(5000 + 837 + 4096 + 64)
    assert ScheduleBatch().retract_decode(server_args=None) == ([short], 0.5, [last, long])
    assert short.to_finish is last.to_finish is None
    assert "needs 9997 rows for its prompt, of 9997" in long.to_finish.message


def test_a_scheduler_that_is_not_as_we_know_it_fails_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = type("Scheduler", (), {"abort_request": lambda self, rid: None})
    stand_in(monkeypatch, "scheduler", "Scheduler", made)
    with pytest.raises(WrongState, match=r"abort_request is \(self, rid\), needs \(self, recv_req"):
        scheduler_hooks.hear_aborts()


def test_worker_and_scheduler_are_as_we_know_them(sglang: None) -> None:
    workers = pytest.importorskip("sglang.srt.managers.tp_worker", exc_type=ImportError)
    assert parameters_of(inspect.signature(workers.TpModelWorker.get_worker_info)) == "(self)"
    names = inspect.getsource(workers.TpModelWorker.get_worker_info).split("return (")[1]
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.schedule_policy import PrefillAdder
    from sglang.srt.managers.scheduler import Scheduler

    retract = parameters_of(inspect.signature(ScheduleBatch.retract_decode))
    assert retract in ("(self, server_args)", "(self)")
    add = parameters_of(inspect.signature(PrefillAdder.add_one_req))
    assert add == "(self, req, has_chunked_req, truncation_align_size)"
    assert parameters_of(inspect.signature(Scheduler.abort_request)) == "(self, recv_req)"
    assert "max_req_len" in names.split(",")[4]
    assert any(word in names.split(",")[5] for word in ("max_req_input_len", "max_req_len - 5"))


def test_hot_buffers_that_leave_no_room_for_a_prompt_fail_the_start() -> None:
    with pytest.raises(InvalidArgument, match=r"leave 4223 rows .* needs 4224"):
        scheduler_hooks.most_prompt_tokens(4223)
    assert scheduler_hooks.most_prompt_tokens(4224) == 64
