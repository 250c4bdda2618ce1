"""How our coordinator comes to stand in the place of SGLang's, and what the start refuses."""

import dataclasses
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hisparse_sidecar.engines.sglang import offload_start, plugin
from hisparse_sidecar.engines.sglang.offload import coordinator as coordinator_module
from hisparse_sidecar.engines.sglang.offload.coordinator import HiSparseCoordinator
from hisparse_sidecar.engines.sglang.offload.requests import (
    prefilled_tokens,
    table_row_of,
    tokens_to_come,
)
from hisparse_sidecar.engines.sglang.offload.token_stats import HiSparseTokenStats
from hisparse_sidecar.engines.sglang.targets import TARGETS, parameters_of
from hisparse_sidecar.errors import InvalidArgument, WrongState
from tests.engines.sglang.index_offload_world import pool_hooks
from tests.engines.sglang.offload_world import HOT, Engine
from tests.engines.sglang.world import make_runner, server_args

NAMED = ("--attention-backend", "hisparse")
OFFLOAD = (*NAMED, "--enable-hisparse", "--disable-radix-cache")


@pytest.fixture
def coordinators(sglang: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """SGLang's module as a scheduler has loaded it, with our stand-in for this test."""
    from sglang.srt.managers import hisparse_coordinator

    stock = hisparse_coordinator.HiSparseCoordinator
    with pool_hooks():
        offload_start.stand_in_for_coordinator()
        yield hisparse_coordinator
    hisparse_coordinator.HiSparseCoordinator = stock


@pytest.fixture
def given(sglang: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What SGLang hands to its coordinator, of parts that are in use by none."""
    monkeypatch.setenv("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", "1000")
    server_args(tmp_path, *OFFLOAD)  # the pool's hooks look at them
    engine = Engine()
    engine.coordinator.destroy()
    engine.allocator.clear()
    return {
        "req_to_token_pool": engine.table,
        "token_to_kv_pool_allocator": engine.allocator,
        "top_k": 32,
        "device_buffer_size": HOT,
        "device": "cpu",
        "tp_group": None,
        "host_to_device_ratio": 3,
        "swap_in_block_size": 960,
    }


@pytest.fixture
def arguments(sglang: None, tmp_path: Path) -> Any:
    """A fixture: SGLang sets logging up anew for each command line."""
    return server_args(tmp_path, *OFFLOAD)


def test_with_our_backend_the_name_makes_ours(
    coordinators: ModuleType, given: dict[str, Any], tmp_path: Path
) -> None:
    server_args(tmp_path, *OFFLOAD, "--hisparse-config", json.dumps({"hot_share": 0.1}))
    made = coordinators.HiSparseCoordinator(**given)
    assert isinstance(made, HiSparseCoordinator)
    assert made.prompt_rows == 2560 - 256
    made.destroy()


@pytest.mark.parametrize(
    ("config", "have_same_rows", "is_shared"),
    [({}, True, True), ({"share_host_pool": False}, True, False), ({}, False, False)],
)
def test_ranks_share_a_host_pool_where_their_rows_are_the_same(
    config: dict[str, Any],
    have_same_rows: bool,
    is_shared: bool,
    given: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    @contextmanager
    def place(group: Any, *, is_wanted: bool) -> Iterator[None]:
        seen.append((group, is_wanted))
        yield None

    monkeypatch.setattr(coordinator_module, "shared_place", place)
    arguments = server_args(tmp_path, *OFFLOAD, "--hisparse-config", json.dumps(config))
    assert offload_start.has_same_rows(arguments)
    monkeypatch.setattr(offload_start, "has_same_rows", lambda server_args: have_same_rows)
    offload_start.create_coordinator(arguments, **given).destroy()
    assert seen == [(None, is_shared)]


@pytest.mark.parametrize(
    "options",
    [
        ("--attention-backend", "dsa", *OFFLOAD[2:]),
        (*OFFLOAD, "--decode-attention-backend", "dsa"),
    ],
)
def test_with_another_backend_the_name_makes_sglangs(
    options: tuple[str, ...],
    coordinators: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server_args(tmp_path, *options)
    stock = coordinators.HiSparseCoordinator.__wrapped__
    monkeypatch.setattr(stock, "__init__", lambda self, **named: None)
    assert isinstance(coordinators.HiSparseCoordinator(), stock)


def test_loading_the_plug_in_twice_replaces_once(coordinators: ModuleType) -> None:
    first = coordinators.HiSparseCoordinator
    plugin.register()
    assert coordinators.HiSparseCoordinator is first


def test_the_start_names_the_coordinator(
    coordinators: ModuleType,
    given: dict[str, Any],
    arguments: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    coordinator = coordinators.HiSparseCoordinator(**given)
    runner = make_runner(arguments, hisparse_coordinator=coordinator)
    with caplog.at_level("INFO", logger="hisparse_sidecar.sglang"):
        backend = plugin.create_backend(runner)
    (line,) = [text for text in caplog.messages if text.startswith("hisparse: replaced")]
    assert f"HiSparseCoordinator; sglang {version('sglang')}" in line
    assert backend.hisparse_coordinator is coordinator
    coordinator.destroy()


def test_sglangs_own_coordinator_fails_the_start(sglang: None, tmp_path: Path) -> None:
    runner = make_runner(server_args(tmp_path, *OFFLOAD), hisparse_coordinator=object())
    with pytest.raises(WrongState, match=r"is a builtins\.object, needs ours"):
        plugin.create_backend(runner)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"pp_size": 2}, "pp_size is 2, offload needs 1"),
        ({"disaggregation_mode": "decode"}, "disaggregation_mode is decode, offload needs null"),
        ({"speculative_algorithm": "EAGLE"}, "speculative_algorithm is EAGLE, offload needs None"),
        ({"disable_radix_cache": False}, "disable_radix_cache is False, offload needs True"),
        ({"enable_mixed_chunk": True}, "enable_mixed_chunk is True, offload needs False"),
        ({"enable_two_batch_overlap": True}, "enable_two_batch_overlap is True, offload needs"),
        ({"enable_pdmux": True}, "enable_pdmux is True, offload needs False"),
        ({"enable_streaming_session": True}, "enable_streaming_session is True, offload needs"),
        (
            {"enable_priority_scheduling": True},
            "enable_priority_scheduling is True and disable_priority_preemption is False, offload",
        ),
        ({"hisparse_config": '{"hot_share": 0}'}, "hot_share is 0, must be above 0 and below 1"),
        ({"hisparse_config": '{"hot_share": "a"}'}, "hot_share is 'a', needs a number"),
    ],
)
def test_what_offload_does_not_cover_fails_the_start(
    changed: dict[str, Any], match: str, given: dict[str, Any], tmp_path: Path
) -> None:
    made = server_args(tmp_path, *OFFLOAD)
    options = {name: getattr(made, name) for name in OPTIONS}
    with pytest.raises(InvalidArgument, match=match):
        offload_start.create_coordinator(SimpleNamespace(**options | changed), **given)


OPTIONS = (
    "pp_size",
    "disaggregation_mode",
    "speculative_algorithm",
    "disable_radix_cache",
    "enable_memory_saver",
    "enable_mixed_chunk",
    "enable_two_batch_overlap",
    "enable_pdmux",
    "enable_streaming_session",
    "enable_priority_scheduling",
    "disable_priority_preemption",
    "hisparse_config",
    "radix_cache_backend",
)


def test_priorities_without_preemption_are_covered(given: dict[str, Any], tmp_path: Path) -> None:
    options = "--enable-priority-scheduling", "--disable-priority-preemption"
    made = server_args(tmp_path, *OFFLOAD, *options)
    offload_start.create_coordinator(made, **given).destroy()
    with pytest.raises(InvalidArgument, match="disable_priority_preemption is False"):
        offload_start.create_coordinator(server_args(tmp_path, *OFFLOAD, options[0]), **given)


def test_our_methods_have_sglangs_parameters() -> None:
    """Those that SGLang may call by name; both versions are held to the table elsewhere."""
    names = [t for t in TARGETS if t.name.startswith("HiSparseCoordinator.")]
    assert len(names) == 13
    for target in names:
        method = getattr(HiSparseCoordinator, target.name.split(".")[1])
        found = parameters_of(inspect.signature(method))
        if target.name.endswith("__init__"):
            found = found.split(", *, ")[0] + ")"  # what is ours alone comes by name
        assert found == target.known[-1]


def test_a_request_of_sglangs_has_the_words_that_we_ask_for(sglang: None) -> None:
    from sglang.srt.managers.schedule_batch import Req, ReqKvInfo
    from sglang.srt.sampling.sampling_params import SamplingParams

    req = Req("some-id", "", [5] * 10, SamplingParams(max_new_tokens=7))
    if hasattr(req, "set_extend_range"):  # 0.5.17
        req.set_extend_range(0, 10)
        req.req_pool_idx = 3
        fields = dataclasses.fields(ReqKvInfo)
        needed = {field.name: 0 for field in fields if field.default is dataclasses.MISSING}
        req.kv = ReqKvInfo(**needed | {"kv_allocated_len": 10})
    else:
        req.extend_end, req.kv.req_pool_idx, req.kv.kv_allocated_len = 10, 3, 10
    assert (table_row_of(req), prefilled_tokens(req), req.kv.kv_allocated_len) == (3, 10, 10)
    assert tokens_to_come(req, 1000) == 9
    assert tokens_to_come(req, 15) == 5
    assert (req.rid, req.hisparse_staging, req.to_finish) == ("some-id", False, None)


def test_token_stats_have_sglangs_fields(sglang: None) -> None:
    from sglang.srt.managers.hisparse_coordinator import HiSparseTokenStats as Stock

    assert HiSparseTokenStats._fields == Stock._fields


def test_sglang_clearing_its_pool_leaves_our_pages_ours(
    coordinators: ModuleType, given: dict[str, Any], arguments: Any
) -> None:
    coordinator = coordinators.HiSparseCoordinator(**given)
    plugin.create_backend(make_runner(arguments, hisparse_coordinator=coordinator))
    allocator = given["token_to_kv_pool_allocator"]
    allocator.clear()
    assert allocator.hisparse_attn_allocator.available_size() == coordinator.prompt_rows
    coordinator.destroy()


def test_decoding_is_not_short_of_memory_where_prompts_fill_the_pool(
    coordinators: ModuleType,
    given: dict[str, Any],
    arguments: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    coordinator = coordinators.HiSparseCoordinator(**given)
    plugin.create_backend(make_runner(arguments, hisparse_coordinator=coordinator))
    allocator = given["token_to_kv_pool_allocator"]
    slots = allocator.logical_attn_allocator.available_size()
    wanted = {"tokens": slots}
    new_tokens = "new_tokens_required_next_decode"
    monkeypatch.setattr(ScheduleBatch, new_tokens, lambda self, selected=None: wanted["tokens"])
    batch = ScheduleBatch.__new__(ScheduleBatch)
    batch.hisparse_coordinator = coordinator
    assert allocator.hisparse_attn_allocator.alloc(coordinator.prompt_rows) is not None
    assert batch.check_decode_mem()
    wanted["tokens"] += 1
    assert not batch.check_decode_mem(selected_indices=[0])
    coordinator.destroy()
