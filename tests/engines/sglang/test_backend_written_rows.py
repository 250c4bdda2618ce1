"""SGLang's writer of KV rows, behind our hook: rows lie where its own look-up says, found once."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hisparse_sidecar.engines.sglang.hooks import install_hooks
from hisparse_sidecar.engines.sglang.pool.beside_pool import keep_written_rows
from tests.engines.sglang.offload_world import LAYERS, PAGE, Engine
from tests.engines.sglang.world import server_args
from tests.launches import Launches

Lists = list[torch.Tensor]


@pytest.fixture
def engine(sglang: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Its writer's kernel needs a GPU: plain PyTorch writes in its place."""
    server_args(tmp_path, "--attention-backend", "hisparse")  # SGLang's writer asks for its ranks
    install_hooks()
    made = Engine()
    keep_written_rows(made.pool)

    def write(
        buffer: torch.Tensor, rows: torch.Tensor, nope: torch.Tensor, rope: torch.Tensor
    ) -> None:
        buffer[rows] = torch.cat([nope, rope], dim=-1).to(buffer.dtype).view(len(rows), 1, -1)

    monkeypatch.setattr(made.pool, "_write_mla_kv_buffer", write)
    yield made
    made.coordinator.destroy()


def keys_of(count: int, seed: int) -> torch.Tensor:
    """[count, 576] bf16."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 576, generator=random).bfloat16()


def write(engine: Engine, slots: Any, layer: int, keys: torch.Tensor) -> int:
    """One layer's write as SGLang's backend makes it; how often slots were looked up for it."""
    launches, of_layer = Launches(), SimpleNamespace(layer_id=layer)
    nope, rope = keys[:, None, :512], keys[:, None, 512:]
    with launches:
        engine.pool.set_mla_kv_buffer(of_layer, slots, nope, rope)
    return launches.names.count("aten::index")


def mapped(engine: Engine, tokens: int) -> torch.Tensor:
    """New slots of so many tokens; their rows lie in the reverse order."""
    slots = engine.allocator.logical_attn_allocator.alloc(PAGE)[:tokens]
    rows = engine.allocator.hisparse_attn_allocator.alloc(PAGE)[:tokens].flip(0)
    engine.allocator.full_to_hisparse_device_index_mapping[slots] = rows
    return slots


def rows_in(engine: Engine, slots: torch.Tensor, layer: int) -> torch.Tensor:
    rows = engine.allocator.full_to_hisparse_device_index_mapping[slots]
    found: torch.Tensor = engine.pool.kv_buffer[layer][rows]
    return found.view(len(slots), -1)


def test_slots_are_looked_up_once_a_pass_and_every_layer_has_its_rows(engine: Engine) -> None:
    slots, keys = mapped(engine, 5), [keys_of(5, layer) for layer in range(LAYERS)]

    looked_up = [write(engine, slots, layer, keys[layer]) for layer in range(LAYERS)]

    assert looked_up == [1, 0, 0]
    for layer in range(LAYERS):
        assert torch.equal(rows_in(engine, slots, layer), keys[layer])


def test_a_pass_over_the_same_slots_looks_them_up_again(engine: Engine) -> None:
    slots, elsewhere = mapped(engine, 5), mapped(engine, 5)
    for layer in range(LAYERS):
        write(engine, slots, layer, keys_of(5, layer))
    mapping = engine.allocator.full_to_hisparse_device_index_mapping
    mapping[slots] = mapping[elsewhere]

    again = [write(engine, slots, layer, keys_of(5, 7)) for layer in range(LAYERS)]

    assert again == [1, 0, 0]
    assert torch.equal(rows_in(engine, elsewhere, 1), keys_of(5, 7))


def test_other_slots_in_a_later_layer_are_looked_up(engine: Engine) -> None:
    slots, others = mapped(engine, 5), mapped(engine, 5)
    write(engine, slots, 0, keys_of(5, 0))

    assert write(engine, others, 1, keys_of(5, 1)) == 1

    assert torch.equal(rows_in(engine, others, 1), keys_of(5, 1))
    assert not rows_in(engine, slots, 1).any()


def test_a_pool_that_is_not_ours_keeps_sglangs_writer(engine: Engine) -> None:
    vars(engine.pool).pop("_hisparse_written_rows")
    slots = mapped(engine, 5)

    looked_up = [write(engine, slots, layer, keys_of(5, layer)) for layer in range(LAYERS)]

    assert looked_up == [1, 1, 1]
    assert torch.equal(rows_in(engine, slots, 2), keys_of(5, 2))


def test_a_write_location_of_the_newer_version_is_one(engine: Engine) -> None:
    from sglang.srt.mem_cache import memory_pool

    if not hasattr(memory_pool, "KVWriteLoc"):
        pytest.skip("this SGLang has no write locations")
    slots = mapped(engine, 5)
    looked_up = [
        write(engine, memory_pool.KVWriteLoc(slots), layer, keys_of(5, layer)) for layer in (0, 1)
    ]

    assert looked_up == [1, 0]
    assert torch.equal(rows_in(engine, slots, 1), keys_of(5, 1))
