"""Index keys of decoding requests on the host: SGLang gets the lists that it gets without."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from accuracy import assert_bits_equal
from hisparse_kernels.index_rows import unpack_index_rows
from hisparse_sidecar import SelectionConfig
from tests.engines.sglang.index_offload_world import HISA, IndexWorld, pool_hooks
from tests.engines.sglang.offload_world import LAYERS, PAGE, Request
from tests.engines.sglang.passes import decode_rows_pass, expected, extend_rows_pass, slots_of
from tests.engines.sglang.world import LAYOUT, TOPK, put_in_place_of_original, quantize

SELECTIONS = {
    "hisa": ({}, HISA),
    "adaptive": (
        {"index_source": "adaptive", "max_blocks": 12, "tail_share": 0.01},
        SelectionConfig(
            "hisa",
            num_kept_blocks=4,
            budget="adaptive",
            max_blocks=12,
            tail_share=0.01,
            gate="off",
        ),
    ),
    "ratio": (
        {"budget": "ratio", "max_blocks": 8},
        SelectionConfig("hisa", num_kept_blocks=4, budget="ratio", max_blocks=8, gate="off"),
    ),
}
Make = Callable[..., IndexWorld]


@pytest.fixture
def make(sglang: None, tmp_path: Path) -> Iterator[Make]:
    made: list[IndexWorld] = []

    def make_one(*args: Any, **named: Any) -> IndexWorld:
        made.append(IndexWorld(tmp_path, *args, **named))
        return made[-1]

    with pool_hooks():
        yield make_one
    for world in made:
        world.coordinator.destroy()


def check_host(world: IndexWorld, *requests: Request) -> None:
    """The host pool has every index key of a request, byte for byte."""
    for req in requests:
        for layer in range(LAYERS):
            found = unpack_index_rows(world.host_index_rows(req, layer), LAYOUT)
            assert_bits_equal(found, world.keys[req.row, layer])


@pytest.mark.parametrize("name", SELECTIONS)
def test_decode_lists_are_those_of_keys_that_stay(name: str, make: Make) -> None:
    options, selection = SELECTIONS[name]
    world = make(options)
    requests = world.begin(900, 130, 64)
    for _ in range(3):
        world.step(selection)
    world.coordinator.check_integrity()
    check_host(world, *requests)
    assert world.backend.hisparse.counts.as_dict() == {"paged: selected": 3 * LAYERS}
    for req in requests:
        world.finish(req)
    world.check_nothing_is_held()


def test_extend_lists_are_those_of_keys_that_stay(make: Make) -> None:
    world = make()
    world.begin(300)
    first, _ = world.prefill_by(500, 140)
    second, _ = world.prefill_by(260, 260)
    made = extend_rows_pass(world, [(first.row, 490, 500), (second.row, 250, 260)])

    for layer in range(LAYERS):
        wanted = slots_of(world, made, expected(world, made, layer, HISA))
        assert made.select(world, layer).tolist() == wanted


def test_sglangs_own_selection_of_prompts_reads_the_pages_of_their_rows(make: Make) -> None:
    world = make({"min_tokens": 2000})
    world.begin(200)
    req, made = world.prefill_by(300, 300)
    with world.context():
        metadata = world.backend.get_indexer_metadata(0, made.batch)
    table = metadata.get_page_table_64()
    logical = getattr(metadata, "get_logical_page_table", metadata.get_page_table_64)()

    assert torch.equal(table, logical)
    pages = world.pool.index_k_with_scale_buffer[1][table[0, :5].long()]
    rows = torch.arange(300)
    codes = pages[:, : PAGE * 128].reshape(-1, 128)[rows]
    scales = pages[:, PAGE * 128 :].reshape(-1, 4)[rows]
    found = unpack_index_rows(torch.cat([codes, scales], dim=1), LAYOUT)
    assert_bits_equal(found, world.keys[req.row, 1])


def test_decode_is_ours_whatever_min_tokens_says(make: Make) -> None:
    world = make({"min_tokens": 2000})
    world.begin(150, 40)
    world.step()
    world.coordinator.check_integrity()


def test_a_writer_that_calls_another_writes_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SGLang's fused writer does where its kernel does not run."""
    world = make()

    def falls_back(
        self: Any, key: torch.Tensor, _: Any, batch: Any, layer: int, act: Any, loc: Any
    ) -> None:
        named = {"act_quant": act, "out_cache_loc": loc}
        self._store_index_k_cache(forward_batch=batch, layer_id=layer, key=key, **named)

    put_in_place_of_original(monkeypatch, "_fused_k_prepare_and_store", falls_back)
    fused = world.indexer._fused_k_prepare_and_store
    world.store = lambda batch, layer, keys: fused(keys, None, batch, layer, quantize)
    (req,) = world.begin(100, chunk=70)
    for _ in range(30):
        world.step()
    world.coordinator.check_integrity()
    check_host(world, req)


class Lives:
    """Requests that come, are aborted, retracted and end, between steps that look at every list.

    Between steps SGLang also runs passes of its own.
    """

    def __init__(self, world: IndexWorld) -> None:
        self.world, self.random = world, torch.Generator().manual_seed(5)

    def drawn(self, most: int) -> int:
        return int(torch.randint(most, (1,), generator=self.random))

    def event(self) -> None:
        world, kind = self.world, self.drawn(5)
        has_room = len(world.free_rows) > 2 and world.free_tokens()[1] > 640
        if kind < 2 and has_room:
            world.begin(1 + self.drawn(500), chunk=1 + self.drawn(300), new_tokens=100)
        elif kind == 2 and has_room:
            req, _ = world.prefill_by(1 + self.drawn(300), 200)
            world.admit(req)
            world.coordinator.abort_staging_request(req)
            world.release(req)
        elif kind == 3 and world.running:
            req = world.running[self.drawn(len(world.running))]
            (world.retract if self.drawn(2) else world.finish)(req)
        elif kind == 4:
            world.idle(1 + self.drawn(3))


def test_random_lives_end_with_nothing_held(make: Make) -> None:
    world = make()
    lives = Lives(world)
    for _ in range(30):
        lives.event()
        for _ in range(1 + lives.drawn(4)):
            if world.running:
                world.step()
        world.coordinator.check_integrity()
        check_host(world, *world.running)
    for req in list(world.running):
        world.finish(req)
    world.check_nothing_is_held()
    world.allocator.clear()
    world.coordinator.pool_was_cleared()
    world.begin(300)
    world.step()


def test_rows_of_the_lists_come_that_sglang_writes_over_ours(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0's, at the same place, as soon as ours are made."""
    monkeypatch.setenv("SGLANG_DSA_TOPK_BROADCAST", "1")
    world = make()
    rows = [(req.row, req.kv.kv_allocated_len + 1) for req in world.begin(300, 200)]
    slots, made = world.prepare(), decode_rows_pass(world, rows)

    def select(layer: int) -> torch.Tensor:
        world.write(made, [layer])
        lists = made.select(world, layer)
        others = torch.randperm(200, generator=world.random)[:TOPK].int()
        return lists.copy_(others.expand_as(lists))

    world.forward(slots, select)


def test_an_idle_pass_fetches_nothing_for_its_attention_waits_for_nothing(make: Make) -> None:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    world = make()
    (req,) = world.begin(300)
    world.step()
    made = decode_rows_pass(world, [(req.row, req.kv.kv_allocated_len)])
    made.batch.forward_mode = ForwardMode.IDLE

    made.select(world, 0)

    assert not world.coordinator.tier.fetches.ahead


def test_the_buffer_is_as_large_as_the_pool_and_its_windows(make: Make) -> None:
    world = make({"window_pages": 4, "hot_share": 0.5})
    rows = world.pool.size
    # half of the rows are hot buffers of 192 rows, each with a window of 5 pages
    wanted = int(rows * (1 + 0.5 * (5 * PAGE / 192 - 1))) // PAGE + 1
    assert [len(pages) for pages in world.pool.index_k_with_scale_buffer] == [wanted] * LAYERS
    stay = make({"offload_index_keys": False})
    assert len(stay.pool.index_k_with_scale_buffer[0]) == 3 * rows // PAGE + 1
    part = world.coordinator.tier.config.index
    assert part is not None
    assert part.end_page == wanted


def test_the_topk_of_the_model_is_that_of_the_pool(make: Make) -> None:
    world = make()
    world.begin(200)
    assert world.step().select(world, 0).shape == (1, TOPK)
