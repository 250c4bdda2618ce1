"""How SGLang comes to make our prefix cache, and what the start refuses."""

import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hisparse_sidecar.engines.sglang import offload_start
from hisparse_sidecar.engines.sglang.offload.no_prefixes import NoPrefixes
from hisparse_sidecar.engines.sglang.prefix import cache as prefix_cache
from hisparse_sidecar.engines.sglang.prefix.targets import PREFIX_TARGETS
from hisparse_sidecar.engines.sglang.targets import check_targets
from hisparse_sidecar.engines.sglang.versions import EngineVersions
from hisparse_sidecar.errors import InvalidArgument, WrongState
from tests.engines.sglang.offload_world import HOT, Engine
from tests.engines.sglang.prefix_world import CachingEngine
from tests.engines.sglang.test_backend_offload_start import OPTIONS
from tests.engines.sglang.world import server_args

OFFLOAD = ("--attention-backend", "hisparse", "--enable-hisparse", "--disable-radix-cache")
CACHED = (*OFFLOAD, "--radix-cache-backend", "hisparse")


@pytest.fixture
def parts(sglang: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What SGLang hands to its coordinator, of parts that are in use by none."""
    from sglang.srt.mem_cache import registry

    monkeypatch.setattr(registry, "_RADIX_CACHE_REGISTRY", {})
    monkeypatch.setenv("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", "1000")
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
    }


def context_of(arguments: Any, parts: dict[str, Any], **changed: Any) -> Any:
    """SGLang's own context of a tree, as its scheduler fills it in."""
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.registry import TreeCacheBuildContext

    params = CacheInitParams(
        disable=arguments.disable_radix_cache,
        req_to_token_pool=parts["req_to_token_pool"],
        token_to_kv_pool_allocator=parts["token_to_kv_pool_allocator"],
        page_size=64,
    )
    fields = {field.name: None for field in dataclasses.fields(TreeCacheBuildContext)}
    flags = dict.fromkeys(("is_hybrid_swa", "is_hybrid_ssm", "enable_hierarchical_cache"), False)
    given = {"server_args": arguments, "params": params, "disable_radix_cache": True}
    return TreeCacheBuildContext(**fields | flags | given | changed)


def test_sglang_makes_our_tree_by_its_name(parts: dict[str, Any], tmp_path: Path) -> None:
    from sglang.srt.mem_cache.registry import create_tree_cache

    arguments = server_args(tmp_path, *CACHED)
    coordinator = offload_start.create_coordinator(arguments, **parts)
    made = create_tree_cache(context_of(arguments, parts))
    assert type(made).__name__ == "HostRadixCache"
    assert coordinator.prefixes is made
    assert not made.disable
    with pytest.raises(WrongState, match="has 1 prefix cache already"):
        create_tree_cache(context_of(arguments, parts))
    coordinator.destroy()


def test_without_the_name_sglang_makes_its_own(parts: dict[str, Any], tmp_path: Path) -> None:
    from sglang.srt.mem_cache.registry import create_tree_cache, registered_radix_cache_backends

    arguments = server_args(tmp_path, *OFFLOAD)
    coordinator = offload_start.create_coordinator(arguments, **parts)
    assert registered_radix_cache_backends() == []
    sizes = {"effective_chunked_prefill_size": 64}
    known = inspect.signature(type(context_of(arguments, parts))).parameters
    some = {name: size for name, size in sizes.items() if name in known}
    assert create_tree_cache(context_of(arguments, parts, **some)).disable
    assert type(coordinator.prefixes) is NoPrefixes
    coordinator.destroy()


def test_the_cache_is_offloads_alone(parts: dict[str, Any], tmp_path: Path) -> None:
    arguments = server_args(tmp_path, *CACHED)
    with pytest.raises(WrongState, match="0 coordinators of ours, needs 1"):
        prefix_cache.make_prefix_cache(context_of(arguments, parts))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"is_hybrid_swa": True}, r"\(True, False, False\), the prefix cache needs none"),
        ({"enable_hierarchical_cache": True}, "the prefix cache needs none"),
    ],
)
def test_a_tree_of_another_kind_is_refused(
    changed: dict[str, Any], match: str, caching: Callable[..., CachingEngine], tmp_path: Path
) -> None:
    engine = caching()
    given = {
        "req_to_token_pool": engine.table,
        "token_to_kv_pool_allocator": engine.allocator,
    }
    arguments = server_args(tmp_path, *CACHED)
    with pytest.raises(InvalidArgument, match=match):
        prefix_cache.make_prefix_cache(context_of(arguments, given, **changed))
    context = context_of(arguments, given)
    context.params.page_size = 1
    with pytest.raises(InvalidArgument, match="pages of 1 tokens, needs 64"):
        prefix_cache.make_prefix_cache(context)
    context.params.page_size, context.params.is_eagle = 64, True
    with pytest.raises(InvalidArgument, match="EAGLE"):
        prefix_cache.make_prefix_cache(context)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"radix_cache_backend": "flexkv"}, "is flexkv, offload needs hisparse or none"),
        (
            {"hisparse_config": json.dumps({"offload_index_keys": True})},
            "offload_index_keys is true, the prefix cache needs",
        ),
    ],
)
def test_what_the_cache_does_not_cover_fails_the_start(
    changed: dict[str, str], match: str, parts: dict[str, Any], tmp_path: Path
) -> None:
    arguments = server_args(tmp_path, *CACHED)
    options = {name: getattr(arguments, name) for name in OPTIONS} | changed
    with pytest.raises(InvalidArgument, match=match):
        offload_start.create_coordinator(SimpleNamespace(**options), **parts)


def test_an_sglang_between_the_known_ones_fails_the_start(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = EngineVersions("0.5.20", "2", "0")
    monkeypatch.setattr(prefix_cache, "installed_versions", lambda: between)
    with pytest.raises(InvalidArgument, match=r"is 0\.5\.20, the prefix cache needs"):
        offload_start.create_coordinator(server_args(tmp_path, *CACHED), **parts)


def test_this_sglang_has_what_the_cache_relies_on(sglang: None) -> None:
    check_targets(PREFIX_TARGETS)


def test_the_coordinator_asks_both_of_the_same(caching: Callable[..., CachingEngine]) -> None:
    tree = type(caching().tree)
    for name, method in inspect.getmembers(NoPrefixes, inspect.isfunction):
        assert inspect.signature(method) == inspect.signature(getattr(tree, name)), name
