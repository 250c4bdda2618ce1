"""Index offload from the command line on: how SGLang sizes its pool, and what the start refuses."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hisparse_sidecar.engines.sglang import offload_start
from hisparse_sidecar.engines.sglang.pool.beside_pool import written_rows_of
from hisparse_sidecar.engines.sglang.pool.index_sizes import IndexSizes
from hisparse_sidecar.engines.sglang.pool.pool_hooks import POOL_TARGETS, hook_pool
from hisparse_sidecar.engines.sglang.settings import read_settings
from hisparse_sidecar.engines.sglang.start_checks import START_TARGETS
from hisparse_sidecar.errors import InvalidArgument, WrongState
from tests.engines.sglang.index_offload_world import OFFLOAD, OPTIONS, IndexWorld, pool_hooks
from tests.engines.sglang.offload_world import DEVICE_PAGES, LAYERS, PAGE, RATIO
from tests.engines.sglang.test_backend_prefix_start import context_of
from tests.engines.sglang.world import make_backend, make_runner, server_args


@pytest.fixture
def hooked(sglang: None) -> Iterator[None]:
    with pool_hooks():
        yield


def arguments_of(folder: Path, *more: str, **options: Any) -> Any:
    config = json.dumps(OPTIONS | options)
    return server_args(folder, *OFFLOAD, "--hisparse-config", config, *more)


def cell_bytes(arguments: Any, *, is_draft: bool = False) -> int:
    """What SGLang's configurator takes a row of the pool to cost."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_executor.pool_configurator import DefaultPoolConfigurator

    asked = SimpleNamespace(
        server_args=arguments,
        model_config=ModelConfig.from_server_args(arguments),
        kv_cache_dtype=torch.bfloat16,
        use_mla_backend=True,
        is_draft_worker=is_draft,
    )
    configurator = DefaultPoolConfigurator.__new__(DefaultPoolConfigurator)
    configurator.kv_cache_dtype_str = "bfloat16"
    return int(configurator._compute_cell_size(asked, LAYERS))


def test_a_row_of_the_pool_costs_what_it_takes(hooked: None, tmp_path: Path) -> None:
    stay = cell_bytes(arguments_of(tmp_path, offload_index_keys=False))
    assert stay == LAYERS * (1152 + RATIO * 132)
    arguments = arguments_of(tmp_path, hot_share=0.5, window_pages=5)
    sizes = IndexSizes(0.5, OPTIONS["device_buffer_size"], 5, RATIO)
    assert cell_bytes(arguments) == sizes.cell_bytes(LAYERS, LAYERS, 1152)
    assert cell_bytes(arguments, is_draft=True) == stay


def test_what_a_row_costs_is_what_there_is(hooked: None, tmp_path: Path) -> None:
    world = IndexWorld(tmp_path, {"host_to_device_ratio": 20}, ratio=20)
    tier, rows = world.coordinator.tier, DEVICE_PAGES * PAGE
    assert tier.index is not None
    states = [tensor for state in tier._hot.of_group for tensor in vars(state).values()]
    there = sum(one.nbytes for one in (*world.pool.kv_buffer, *states))
    there += sum(one.nbytes for one in world.pool.index_k_with_scale_buffer)
    there += tier.index.num_bytes
    per_row = IndexSizes(0.5, OPTIONS["device_buffer_size"], 6, 20).cell_bytes(LAYERS, LAYERS, 1152)
    assert 1 <= there / (rows * per_row) < 1.04  # one page in 41 is nobody's
    world.coordinator.destroy()


def test_long_contexts_get_more_rows_of_the_same_memory(hooked: None, tmp_path: Path) -> None:
    real = {"top_k": 2048, "device_buffer_size": 4096, "host_to_device_ratio": 24}
    stay = cell_bytes(arguments_of(tmp_path, **real, offload_index_keys=False))
    gone = cell_bytes(arguments_of(tmp_path, **real, num_kept_blocks=128))
    assert stay / gone > 2.5


def test_layers_that_share_a_selection_have_no_index_keys(hooked: None, tmp_path: Path) -> None:
    from sglang.srt.mem_cache import kv_cache_configurator

    elide = getattr(kv_cache_configurator, "_should_elide_dsa_index_k", None)
    if elide is None:
        pytest.skip("SGLang 0.5.17 has index keys in every layer")
    arguments_of(tmp_path)
    assert elide(is_draft_worker=False)
    assert not elide(is_draft_worker=True)
    shares = [False, True, False]
    options = {"skip_topk_layers": shares}
    world = IndexWorld(tmp_path, shared_index_layers=shares, pool_options=options)
    config = world.coordinator.tier.config
    assert (config.num_groups, config.anchors) == (2, (0, 2))
    assert config.host_layout().num_anchors == 2
    rows = [len(pages) for pages in world.pool.index_k_with_scale_buffer]
    assert rows[1] == 0 < rows[0] == rows[2]
    with pytest.raises(WrongState, match="layer 1 has no index keys, layer 0 selects for it"):
        world.backend.hisparse.offloaded.select(None, 1, (torch.zeros(1), torch.zeros(1)), 8, 2)
    world.begin(500, 70)
    for _ in range(2):
        world.step()
    world.coordinator.check_integrity()
    world.coordinator.destroy()
    arguments_of(tmp_path, offload_index_keys=False)
    assert not elide(is_draft_worker=False)


def test_hooking_twice_replaces_once(hooked: None) -> None:
    from sglang.srt.mem_cache.memory_pool import DSATokenToKVPool

    first = DSATokenToKVPool.__init__
    hook_pool(offload_start.is_asked_for)
    assert DSATokenToKVPool.__init__ is first


def given_to_coordinator(world: IndexWorld) -> dict[str, Any]:
    world.coordinator.destroy()
    world.allocator.clear()
    return {
        "req_to_token_pool": world.table,
        "token_to_kv_pool_allocator": world.allocator,
        "top_k": OPTIONS["top_k"],
        "device_buffer_size": OPTIONS["device_buffer_size"],
        "device": "cpu",
        "tp_group": None,
    }


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """For prompts in a small pool beside the new tokens that SGLang estimates."""
    monkeypatch.setenv("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", "100")


@pytest.fixture
def start(hooked: None, room: None, tmp_path: Path) -> tuple[Any, dict[str, Any]]:
    """A fixture: SGLang sets logging up anew for each command line."""
    world = IndexWorld(tmp_path)
    return world.arguments, given_to_coordinator(world)


def test_the_start_says_where_index_keys_are(
    start: tuple[Any, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    arguments, given = start
    with caplog.at_level("INFO", logger="hisparse_sidecar.sglang"):
        made = offload_start.create_coordinator(arguments, **given)
    assert "index keys of 3 of 3 layers, in windows of 46 pages, 7 for each request" in caplog.text
    made.destroy()


def test_the_start_lets_the_pools_writer_find_rows_once_a_pass(
    start: tuple[Any, dict[str, Any]],
) -> None:
    arguments, given = start
    pool = given["token_to_kv_pool_allocator"].get_kvcache()
    assert written_rows_of(pool) is None
    made = offload_start.create_coordinator(arguments, **given)
    assert written_rows_of(pool) is not None
    made.destroy()


def test_the_prefix_cache_may_lie_beside_it(
    start: tuple[Any, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.mem_cache import registry

    monkeypatch.setattr(registry, "_RADIX_CACHE_REGISTRY", {})
    _, given = start
    arguments = arguments_of(tmp_path, "--radix-cache-backend", "hisparse")
    made = offload_start.create_coordinator(arguments, **given)
    tree = registry.create_tree_cache(context_of(arguments, given))
    assert made.prefixes is tree
    assert made.offloaded_keys is not None
    made.destroy()


def test_a_pool_that_was_made_without_us_fails_the_start(
    sglang: None, room: None, tmp_path: Path
) -> None:
    plain = IndexWorld(tmp_path, {"offload_index_keys": False})
    given, arguments = given_to_coordinator(plain), arguments_of(tmp_path)
    with pytest.raises(WrongState, match="_compute_cell_size is not ours: was the plug-in loaded"):
        offload_start.create_coordinator(arguments, **given)
    given = given_to_coordinator(IndexWorld(tmp_path, {"offload_index_keys": False}))
    needed = rf"has {RATIO * DEVICE_PAGES + 1} pages of index keys, needs \d+: was the plug-in"
    with pool_hooks(), pytest.raises(WrongState, match=needed):
        offload_start.create_coordinator(arguments, **given)


def test_another_prefill_backend_fails_the_start(hooked: None, room: None, tmp_path: Path) -> None:
    given = given_to_coordinator(IndexWorld(tmp_path))
    arguments = arguments_of(tmp_path, "--prefill-attention-backend", "dsa")
    with pytest.raises(InvalidArgument, match="prefill attention backend is dsa, offload_index"):
        offload_start.create_coordinator(arguments, **given)


def test_index_offload_needs_the_host_tier(sglang: None, tmp_path: Path) -> None:
    named = "--attention-backend", "hisparse", "--hisparse-config"
    arguments = server_args(tmp_path, *named, json.dumps({"offload_index_keys": True}))
    with pytest.raises(InvalidArgument, match="offload_index_keys needs --enable-hisparse"):
        make_backend(make_runner(arguments))


def test_what_our_selection_does_not_cover_fails_the_start(hooked: None, tmp_path: Path) -> None:
    from hisparse_sidecar.engines.sglang.backend import selection_of

    world = IndexWorld(tmp_path)
    asked = vars(world.arguments) | {"enable_lmcache": True}
    runner = SimpleNamespace(**vars(world.runner) | {"server_args": SimpleNamespace(**asked)})
    settings = read_settings(world.arguments.hisparse_config)
    with pytest.raises(InvalidArgument, match="LMCache: offload_index_keys does not cover it"):
        selection_of(runner, settings)
    world.indexer.num_init_tokens = 4
    world.begin(200)
    with pytest.raises(WrongState, match="always selects: offload_index_keys does not cover it"):
        world.step()
    world.coordinator.destroy()


@pytest.mark.parametrize("source", ["flat", "misa", "misa_dagger"])
def test_selections_that_scan_every_key_are_refused(source: str) -> None:
    text = json.dumps({"offload_index_keys": True, "index_source": source})
    with pytest.raises(InvalidArgument, match=f"index_source is {source}, which scans every key"):
        read_settings(text)


def test_a_schedulers_pool_is_hooked_though_it_imports_its_maker_later(sglang: None) -> None:
    command = [sys.executable, "-m", "tests.engines.sglang.fresh_scheduler"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wanted = [target.name for target in (*START_TARGETS, *POOL_TARGETS)]
    assert ended.stdout.split() == wanted, ended.stderr[-2000:]
