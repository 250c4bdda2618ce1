"""Pooled keys follow every way in which index keys come to SGLang's pages."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from accuracy import assert_bits_equal
from hisparse_kernels.index_rows import pack_index_rows, read_index_rows, write_index_rows
from hisparse_kernels.pool_keys import rebuild_pooled_keys_ref
from hisparse_sidecar.engines.sglang.pool.beside_pool import pooled_pages_of
from hisparse_sidecar.engines.sglang.versions import installed_versions
from tests.engines.sglang.world import (
    LAYERS,
    LAYOUT,
    PAGE,
    World,
    make_runner,
    make_world,
    put_in_place_of_original,
    server_args,
)


@pytest.fixture
def world(sglang: None, tmp_path: Path) -> World:
    arguments = server_args(tmp_path, "--attention-backend", "hisparse")
    return make_world(make_runner(arguments), (150, 64))


def assert_pooled(world: World, seq: int, tokens: int) -> None:
    """Pooled keys of a sequence's full pages are those of its rows, in every layer."""
    full = tokens // PAGE
    pages = world.pages[seq][:full]
    for layer in range(LAYERS):
        rebuilt = torch.zeros(1, LAYOUT.page_bytes, dtype=torch.uint8)
        rebuild_pooled_keys_ref(
            world.pool.index_k_with_scale_buffer[layer],
            pages[None].int(),
            torch.tensor([full * PAGE]).int(),
            torch.zeros(1, 128),
            torch.tensor([0]),
            rebuilt,
            torch.tensor([0]),
            PAGE,
            LAYOUT,
        )
        pooled = pooled_pages_of(world.pool)
        assert pooled is not None
        found = read_index_rows(pooled.of_layer(layer), pages, LAYOUT)
        assert_bits_equal(found, read_index_rows(rebuilt, torch.arange(full), LAYOUT))
        assert bool(found.any(1).all())


def test_rows_that_an_extend_pass_writes(world: World) -> None:
    assert_pooled(world, 0, 150)
    assert_pooled(world, 1, 64)


def test_a_page_that_is_filled_token_by_token(world: World) -> None:
    pooled = pooled_pages_of(world.pool)
    assert pooled is not None
    before = read_index_rows(pooled.of_layer(0), world.pages[0][2:3], LAYOUT).clone()
    for pos in range(150, 191):
        world.write(0, pos, pos + 1)
    assert_bits_equal(read_index_rows(pooled.of_layer(0), world.pages[0][2:3], LAYOUT), before)

    world.write(0, 191, 192)

    assert_pooled(world, 0, 192)


def test_drafts_that_were_rejected_and_written_again(world: World) -> None:
    world.write(0, 150, 195, seed=7)  # accepted up to 160
    world.write(0, 160, 192)
    assert_pooled(world, 0, 192)


def test_a_page_that_another_sequence_gets(world: World) -> None:
    world.pages[1] = world.pages[0][:2]
    world.write(1, 0, 128, seed=3)
    assert_pooled(world, 1, 128)


@pytest.mark.xfail(
    installed_versions().sglang == "0.5.17",
    reason="SGLang 0.5.17 takes tokens for pages when it moves index keys",
    raises=IndexError,
)
def test_rows_that_are_moved(world: World) -> None:
    source, target = world.slots(0, 0, 64), world.slots(0, 128, 192)
    world.pool.move_kv_cache(target, source)
    assert_pooled(world, 0, 192)


def test_pages_that_come_back_from_the_host(world: World) -> None:
    slots = world.slots(0, 0, 128)
    copied = world.pool.get_cpu_copy(slots)
    world.pages[0] = world.pages[0].flip(0)
    moved = world.slots(0, 0, 128)
    world.pool.load_cpu_copy(copied, moved)
    assert_pooled(world, 0, 128)


def test_rows_that_the_fused_writer_writes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel needs a GPU: the same rows, written by us, stand for what it writes."""
    slots, given = world.slots(0, 128, 192), []

    def writes(_: Any, key: torch.Tensor, *rest: Any) -> None:
        given.append(rest)
        for layer in range(LAYERS):
            pages = world.pool.index_k_with_scale_buffer[layer]
            write_index_rows(pages, slots, pack_index_rows(key, LAYOUT), LAYOUT)

    put_in_place_of_original(monkeypatch, "_fused_k_prepare_and_store", writes)
    batch, key = SimpleNamespace(out_cache_loc=slots), torch.randn(64, 128)
    with world.context():
        world.indexer._fused_k_prepare_and_store(key, None, batch, 0, None)
        world.indexer._fused_k_prepare_and_store(key, None, None, 1, None, out_cache_loc=slots)

    assert_pooled(world, 0, 192)
    assert [len(rest) for rest in given] == [5, 5]


def test_a_pool_without_our_backend_is_left_alone(world: World, tmp_path: Path) -> None:
    other = make_runner(server_args(tmp_path, "--attention-backend", "dsa"))
    assert pooled_pages_of(other.token_to_kv_pool) is None
    world.backend.token_to_kv_pool = other.token_to_kv_pool
    world.runner.token_to_kv_pool = other.token_to_kv_pool
    world.write(0, 0, 64)  # of a pass that runs with another backend


def test_backends_of_one_pool_share_its_pooled_keys(world: World) -> None:
    from tests.engines.sglang.world import make_backend

    second = make_backend(world.runner)
    assert second.hisparse._pooled is world.backend.hisparse._pooled
