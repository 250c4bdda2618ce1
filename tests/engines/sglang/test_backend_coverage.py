"""Calls that are not ours go SGLang's way, counted, and the first of each kind logged."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hisparse_sidecar.engines.sglang.pool.beside_pool import pooled_pages_of
from hisparse_sidecar.engines.sglang.selection.coverage import uncovered_process
from tests.engines.sglang.passes import decode_pass, extend_pass
from tests.engines.sglang.world import (
    TOPK,
    World,
    make_runner,
    make_world,
    put_in_place_of_original,
    server_args,
)

NAMED = ("--attention-backend", "hisparse", "--hisparse-config", '{"min_tokens": 200}')
STOCK = torch.full((1, TOPK), 7, dtype=torch.int32)


@pytest.fixture
def world(sglang: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """SGLang's own selection needs a GPU: a list of sevens stands for what it would give."""
    made = make_world(make_runner(server_args(tmp_path, *NAMED)), (230,))
    for name in ("_get_topk_paged", "_get_topk_ragged"):
        put_in_place_of_original(monkeypatch, name, lambda *_: STOCK)
    return made


def reasons(world: World) -> dict[str, int]:
    return dict(world.backend.hisparse.counts.as_dict())


def test_short_batches_are_sglangs(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="hisparse_sidecar.sglang"):
        assert decode_pass(world, (200,)).select(world, 0) is STOCK
        assert decode_pass(world, (150,)).select(world, 0) is STOCK
        assert extend_pass(world, ((190, 200),)).select(world, 0) is STOCK
        assert decode_pass(world, (201,)).select(world, 0) is not STOCK

    assert reasons(world) == {
        "paged: no sequence above min_tokens": 2,
        "ragged: no sequence above min_tokens": 1,
        "paged: selected": 1,
    }
    logged = [text for text in caplog.messages if "SGLang's own selection" in text]
    assert logged == [
        "hisparse: SGLang's own selection runs, paged: no sequence above min_tokens",
        "hisparse: SGLang's own selection runs, ragged: no sequence above min_tokens",
    ]


def test_tokens_that_the_model_forces_are_sglangs(world: World) -> None:
    world.indexer.num_local_tokens = 2
    assert decode_pass(world, (220,)).select(world, 0) is STOCK
    assert reasons(world) == {"paged: tokens that the model always selects": 1}


def test_context_parallel_is_sglangs(world: World) -> None:
    made = decode_pass(world, (220,))
    made.batch.attn_cp_metadata = SimpleNamespace()
    assert made.select(world, 0) is STOCK
    assert reasons(world) == {"paged: context parallel": 1}


def test_another_backends_calls_are_not_even_counted(world: World) -> None:
    made = decode_pass(world, (220,))
    with world.context():
        ours = world.backend.get_indexer_metadata(0, made.batch)
        stock = super(type(world.backend), world.backend).get_indexer_metadata(0, made.batch)
        inputs = 0, made.query, made.weights
        assert world.indexer._get_topk_paged(made.batch, *inputs, stock) is STOCK
        assert reasons(world) == {}
        assert world.indexer._get_topk_paged(made.batch, *inputs, ours) is not STOCK


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--enable-hierarchical-cache",), "hierarchical cache"),
        (("--disaggregation-mode", "decode"), "disaggregated prefill and decode"),
        (("--enable-lmcache",), "LMCache"),
    ],
)
def test_processes_whose_keys_come_by_other_ways_are_sglangs(
    arguments: tuple[str, ...], reason: str, sglang: None, tmp_path: Path
) -> None:
    from tests.engines.sglang.world import make_backend

    runner = make_runner(server_args(tmp_path, *NAMED))
    asked = server_args(tmp_path, *NAMED, *arguments)
    backend = make_backend(SimpleNamespace(**vars(runner) | {"server_args": asked}))

    assert backend.hisparse._uncovered == reason
    assert pooled_pages_of(runner.token_to_kv_pool) is None


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        ({"index_kpool": 4, "page_size": 256}, "index keys of several tokens"),
        ({"page_size": 1}, "pages of 1 tokens"),
        ({"page_size": 64}, None),
    ],
)
def test_pools_with_other_pages_are_sglangs(pool: dict[str, Any], reason: str | None) -> None:
    arguments = SimpleNamespace(disaggregation_mode="null")
    assert uncovered_process(arguments, SimpleNamespace(**pool)) == reason


@pytest.mark.parametrize(
    ("name", "reason"), [(None, None), ("hisparse", None), ("flexkv", "another prefix cache")]
)
def test_prefix_caches_of_other_names_are_sglangs(
    name: str | None, reason: str | None, sglang: None, tmp_path: Path
) -> None:
    made = server_args(tmp_path, *NAMED)
    assert made.radix_cache_backend is None
    arguments = SimpleNamespace(disaggregation_mode="null", radix_cache_backend=name)
    assert uncovered_process(arguments, SimpleNamespace(page_size=64)) == reason
