"""The prefix cache with index keys on the host: SGLang gets the lists that it gets without."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hisparse_kernels.index_rows import read_index_rows
from tests.engines.sglang.index_offload_world import pool_hooks, stored_rows
from tests.engines.sglang.offload_world import LAYERS, PAGE
from tests.engines.sglang.passes import extend_rows_pass
from tests.engines.sglang.prefix_index_world import CachingIndexWorld
from tests.engines.sglang.prefix_world import prompt
from tests.engines.sglang.test_backend_prefix_ends import Lives
from tests.engines.sglang.world import LAYOUT, TOPK

Make = Callable[..., CachingIndexWorld]


@pytest.fixture
def make(sglang: None, tmp_path: Path) -> Iterator[Make]:
    made: list[CachingIndexWorld] = []

    def make_one(**named: Any) -> CachingIndexWorld:
        made.append(CachingIndexWorld(tmp_path, **named))
        return made[-1]

    with pool_hooks():
        yield make_one
    for world in made:
        world.coordinator.destroy()


def finish_all(world: CachingIndexWorld) -> None:
    for req in list(world.running):
        world.finish(req)
    world.check_only_the_tree_holds()


def test_a_prompt_finds_index_keys_of_one_that_has_ended(make: Make) -> None:
    world = make()
    (first,) = world.start_tokens(prompt(500))
    world.decode(30)
    answer = list(first.output_ids)
    finish_all(world)
    world.spoil()
    second = world.prefill_tokens([*prompt(500), *answer[:25], 5, 6, 7])
    assert world.extent(second) == (512, 528)
    world.stage(second)
    world.collect()
    world.check_all()
    world.decode(70)
    world.check_all()
    finish_all(world)


def test_layers_that_share_a_selection_have_no_index_keys_of_a_prefix(make: Make) -> None:
    from sglang.srt.mem_cache import kv_cache_configurator

    if not hasattr(kv_cache_configurator, "_should_elide_dsa_index_k"):
        pytest.skip("SGLang 0.5.17 has index keys in every layer")
    shares = [False, True, False]
    world = make(shared_index_layers=shares, pool_options={"skip_topk_layers": shares})
    assert world.anchors == (0, 2)
    world.leave(prompt(400))
    world.start_tokens([*prompt(400), *prompt(100, 1)])
    world.decode(30)
    world.check_all()
    finish_all(world)


def test_requests_share_a_prefix_in_prefill_and_when_they_decode(make: Make) -> None:
    world = make()
    world.leave(prompt(448))
    both = [world.request([*prompt(448), 1]), world.request([*prompt(448)[:300], 2])]
    assert world.let_in(*both) == both
    for req in both:
        world.compute(req)
    world.stage(both[0])
    assert world.collect() == [both[0]]
    world.decode(2)
    begin, end = world.extent(both[1])
    assert begin == 256
    world.spoil()
    world.select_some(both[1], begin, end)  # its rows are there when the other's are free
    world.stage(both[1])
    world.collect()
    free = world.free_tokens()[2]
    world.decode(66)
    world.check_all()
    assert world.free_tokens()[2] == free
    finish_all(world)


@pytest.mark.parametrize("chunk", [64, 192])
def test_a_prefix_goes_on_in_chunks(chunk: int, make: Make) -> None:
    world = make()
    world.leave(prompt(330))
    req = world.request(prompt(700))
    assert world.let_in(req, chunk=chunk) == [req]
    assert world.extent(req) == (320, 320 + chunk)
    world.compute(req)
    while world.extent(req)[1] < 700:
        world.stash(req)
        world.spoil()
        world.next_chunk(req, chunk)
        world.compute(req)
    world.stage(req)
    assert world.collect() == [req]
    world.decode(20)
    finish_all(world)


def test_a_retracted_request_finds_its_own_prompt(make: Make) -> None:
    world = make()
    _, gone = world.start_tokens(prompt(300, 1), prompt(600, 2))
    world.decode(40)
    world.retract(gone)
    world.check_all()
    world.decode(2)
    world.spoil()
    assert world.let_in(gone) == [gone]
    assert world.extent(gone) == (576, 641)
    world.compute(gone)
    world.stage(gone)
    world.collect()
    world.decode(10)
    finish_all(world)


def test_an_evicted_prefix_is_computed_again(make: Make) -> None:
    world = make(ratio=1, options={"host_to_device_ratio": 1})
    for seed in range(4):
        world.leave(prompt(512, seed), new_tokens=30)
    world.tree.make_host_room(world.free_tokens()[2] + 1)
    assert world.tree.total_size() == 3 * 512
    world.start_tokens(prompt(200, 9), new_tokens=30)  # in the pages that are free by now
    again = world.prefill_tokens([*prompt(512), 1], new_tokens=30)
    assert world.extent(again)[0] == 0
    newest = world.prefill_tokens([*prompt(512, 3), 1], new_tokens=30)
    assert world.extent(newest)[0] == 512
    world.stage(again, newest)
    world.collect()
    world.decode(10)
    world.check_all()
    finish_all(world)


def test_pages_that_were_given_up_come_back_with_their_index_keys(make: Make) -> None:
    options = {"host_to_device_ratio": 1, "hot_share": 0.15}  # one hot buffer
    world = make(ratio=1, options=options, hot_share=0.15)
    for seed in range(2):
        world.leave(prompt(640, seed), new_tokens=10)
    held = world.coordinator.tier._manager.lease_pages(12)
    first = world.prefill_tokens(prompt(60, 7), new_tokens=900)
    others = [world.prefill_tokens([*prompt(640, n), 1], new_tokens=30) for n in range(2)]
    loaded = [node.hisparse_rows for node in world.tree.loads.path_of(others[0])]
    world.stage(first, *others)
    assert world.collect() == [first]
    assert [rows.lease for rows in loaded] == [None]
    world.decode(5)
    world.finish(first)
    held.release()
    for req in others:
        assert world.collect() == [req]
        world.check_all()
        world.decode(20)
        world.finish(req)
    world.check_only_the_tree_holds()
    again = world.prefill_tokens([*prompt(640), 1])
    assert world.extent(again)[0] == 640


def test_a_flushed_cache_holds_nothing(make: Make) -> None:
    world = make()
    world.leave(prompt(500))
    world.flush()
    world.check_nothing_is_held()
    world.start_tokens(prompt(500))
    world.decode(2)
    finish_all(world)


@pytest.mark.parametrize("call", ["abort_staging_request", "retract_req", "request_finished"])
def test_a_request_that_is_aborted_in_staging_lets_its_prefix_go(call: str, make: Make) -> None:
    world = make()
    world.leave(prompt(300))
    both = [world.prefill_tokens([*prompt(300), token]) for token in (1, 2)]
    world.stage(*both)
    getattr(world.coordinator, call)(both[0])
    world.release_aborted(both[0])
    assert world.collect() == [both[1]]
    world.decode(2)
    finish_all(world)


def test_sglangs_own_selection_of_prompts_reads_the_keys_of_a_prefix(make: Make) -> None:
    world = make(options={"min_tokens": 2000})
    world.selects_prompts = False
    world.leave(prompt(300))
    req = world.prefill_tokens([*prompt(300), 1])
    assert world.extent(req)[0] == 256
    made = extend_rows_pass(world, [(req.row, 256, 301)])
    with world.context():
        table = world.backend.get_indexer_metadata(0, made.batch).get_page_table_64()
    pos = torch.arange(301)
    rows = table[0, pos // PAGE].long() * PAGE + pos % PAGE
    for layer in range(LAYERS):
        found = read_index_rows(world.pool.index_k_with_scale_buffer[layer], rows, LAYOUT)
        assert torch.equal(found, stored_rows(world.keys_for(world.computed(req), layer)))


class LongLives(Lives):
    """Requests that all have more tokens than a layer selects."""

    def tokens(self) -> list[int]:
        return [*super().tokens(), *prompt(TOPK, self.random.randrange(1 << 20))]

    def load(self) -> None:
        """A prefix for a request that is not let in."""
        self.engine.only_load(self.engine.request(self.tokens()))


def lives_of(world: CachingIndexWorld, seed: int) -> list[list[list[int]]]:
    """What all passes of a random life selected; nothing is held behind it."""
    lives, world.looks = LongLives(world, seed), False
    for _ in lives.act(30, lives.load):
        world.check_all()
        world.spoil()
    lives.end()
    assert world.num_found >= PAGE
    return world.lists


@pytest.mark.parametrize("seed", [0, 1, 3, 4])
def test_random_lives_have_the_lists_of_an_engine_whose_index_keys_stay(
    seed: int, make: Make
) -> None:
    ratio = 1 + seed % 2
    found, wanted = (
        lives_of(make(ratio=ratio, options=options | {"host_to_device_ratio": ratio}), seed)
        for options in ({}, {"offload_index_keys": False})
    )
    assert len(found) > 100
    assert found == wanted
