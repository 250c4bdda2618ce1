"""The prefix cache beside the host tier: SGLang's requests find what others have left, exactly."""

from collections.abc import Callable

import pytest

from tests.engines.sglang.offload_world import DEVICE_PAGES, PAGE
from tests.engines.sglang.prefix_world import CachingEngine, prompt

Make = Callable[..., CachingEngine]


def test_a_prompt_finds_the_rows_of_one_that_has_ended(caching: Make) -> None:
    engine = caching()
    (first,) = engine.start_tokens(prompt(300))
    engine.decode(30)
    answer = list(first.output_ids)
    engine.finish(first)
    engine.check_only_the_tree_holds()
    assert engine.tree.total_size() == 330 // PAGE * PAGE
    second = engine.prefill_tokens([*prompt(300), *answer[:25], 5, 6, 7])
    assert engine.extent(second) == (320, 328)
    engine.stage(second)
    engine.collect()
    engine.decode(70)
    engine.check_all()
    engine.finish(second)
    engine.check_only_the_tree_holds()


def test_a_prompt_is_found_while_its_request_decodes(caching: Make) -> None:
    engine = caching()
    (first,) = engine.start_tokens(prompt(200))
    engine.decode(3)
    second = engine.prefill_tokens([*prompt(200), 1])
    assert engine.extent(second) == (192, 201)
    engine.decode(2)  # beside the loaded prefix
    engine.stage(second)
    engine.collect()
    engine.decode(70)
    engine.check_all()
    engine.finish(first)
    engine.decode(5)
    engine.finish(second)
    engine.check_only_the_tree_holds()


def test_host_pages_of_a_prefix_are_shared(caching: Make) -> None:
    engine = caching()
    engine.start_tokens(prompt(640), new_tokens=60)
    free = engine.free_tokens()[2]
    engine.start_tokens([*prompt(640), 1], new_tokens=60)
    assert free - engine.free_tokens()[2] == 1
    engine.decode(60)
    engine.check_all()


def test_a_prefix_gives_its_rows_of_the_pool_back(caching: Make) -> None:
    engine = caching()
    engine.start_tokens(prompt(320))
    assert engine.free_tokens()[1] == engine.at_start[1]
    second = engine.prefill_tokens([*prompt(320), 1])
    assert engine.free_tokens()[1] == engine.at_start[1] - 320 - PAGE
    engine.stage(second)
    engine.collect()
    assert engine.free_tokens()[1] == engine.at_start[1]


def test_requests_in_prefill_share_the_rows_of_a_prefix(caching: Make) -> None:
    engine = caching()
    engine.finish(*engine.start_tokens(prompt(320)))
    both = [engine.request([*prompt(320), 1]), engine.request([*prompt(320), 2])]
    assert engine.let_in(*both) == both
    for req in both:
        engine.compute(req)
    assert engine.free_tokens()[1] == engine.at_start[1] - 320 - 2 * PAGE
    engine.stage(both[0])
    assert engine.collect() == [both[0]]
    engine.check_prefill(both[1], engine.computed(both[1]), both[1].rows)
    engine.decode(2)
    engine.finish(both[0])
    engine.check_prefill(both[1], engine.computed(both[1]), both[1].rows)
    engine.stage(both[1])
    engine.collect()
    engine.decode(2)
    engine.finish(both[1])
    engine.check_only_the_tree_holds()


def test_a_node_that_splits_while_it_is_loaded_stays_loaded(caching: Make) -> None:
    engine = caching()
    engine.finish(*engine.start_tokens(prompt(512)))
    whole = engine.prefill_tokens([*prompt(512), 1])
    half = engine.prefill_tokens([*prompt(512)[:300], 1])
    assert (engine.extent(whole)[0], engine.extent(half)[0]) == (512, 256)
    engine.check_all()
    engine.check_prefill(whole, engine.computed(whole), whole.rows)
    engine.stage(whole)
    engine.collect()
    engine.check_prefill(half, engine.computed(half), half.rows)
    assert engine.free_tokens()[1] == engine.at_start[1] - 256 - PAGE
    engine.stage(half)
    engine.collect()
    engine.decode(30)
    for req in list(engine.running):
        engine.finish(req)
    engine.check_only_the_tree_holds()


def test_equal_prompts_at_once_leave_one_copy_of_their_slots(caching: Make) -> None:
    engine = caching()
    both = [engine.prefill_tokens(prompt(200), new_tokens=50) for _ in range(2)]
    slots = engine.free_tokens()[0]
    engine.stage(*both)
    engine.collect()
    assert engine.free_tokens()[0] == slots + 3 * PAGE
    engine.decode(40)
    engine.check_all()
    engine.finish(both[0])
    engine.decode(3)
    engine.finish(both[1])
    engine.check_only_the_tree_holds()


@pytest.mark.parametrize("chunk", [64, 128, 192])
def test_a_prefix_goes_on_in_chunks(chunk: int, caching: Make) -> None:
    engine = caching()
    engine.finish(*engine.start_tokens(prompt(130)))
    req = engine.request(prompt(500))
    assert engine.let_in(req, chunk=chunk) == [req]
    assert engine.extent(req) == (128, 128 + chunk)
    engine.compute(req)
    while engine.extent(req)[1] < 500:
        engine.stash(req)
        engine.next_chunk(req, chunk)
        engine.compute(req)
    engine.stage(req)
    assert engine.collect() == [req]
    engine.decode(20)
    engine.finish(req)
    engine.check_only_the_tree_holds()
    assert engine.tree.total_size() == 512


def test_a_retracted_request_finds_its_own_prompt(caching: Make) -> None:
    engine = caching()
    kept, gone = engine.start_tokens(prompt(100, 1), prompt(300, 2))
    engine.decode(40)
    tokens = engine.computed(gone)
    engine.retract(gone)
    engine.check_all()
    assert engine.let_in(gone) == [gone]
    assert engine.extent(gone) == (256, 341)
    engine.compute(gone)
    assert engine.computed(gone)[:-1] == tokens
    engine.stage(gone)
    engine.collect()
    engine.decode(10)
    for req in (kept, gone):
        engine.finish(req)
    engine.check_only_the_tree_holds()


def test_namespaces_do_not_see_each_other(caching: Make) -> None:
    engine = caching()
    engine.finish(*engine.start_tokens(prompt(200), extra_key="one"))
    other = engine.prefill_tokens([*prompt(200), 1], extra_key="two")
    same = engine.prefill_tokens([*prompt(200), 1], extra_key="one")
    assert (engine.extent(other)[0], engine.extent(same)[0]) == (0, 192)


def test_a_request_that_ends_with_its_prefill_leaves_nothing(caching: Make) -> None:
    engine = caching()
    engine.finish(*engine.start_tokens(prompt(200)))
    req = engine.prefill_tokens([*prompt(200), *prompt(200, 1)])
    req.output_ids.append(1)
    engine.finish(req)
    engine.check_only_the_tree_holds()
    assert engine.tree.total_size() == 192


@pytest.mark.parametrize("name", ["input_embeds", "positional_embed_overrides"])
def test_what_says_nothing_by_its_token_ids_is_not_cached(name: str, caching: Make) -> None:
    engine = caching()
    engine.finish(*engine.start_tokens(prompt(200)))
    again = engine.prefill_tokens([*prompt(200), 1], **{name: [[0.0]]})
    assert engine.extent(again) == (0, 201)
    engine.stage(again)
    engine.collect()
    engine.decode(2)
    engine.finish(again)
    engine.finish(*engine.start_tokens(prompt(200, 5), **{name: [[0.0]]}))
    assert engine.tree.total_size() == 192
    engine.check_only_the_tree_holds()


def test_a_flushed_cache_holds_nothing(caching: Make) -> None:
    engine = caching()
    engine.finish(*engine.start_tokens(prompt(500)))
    engine.flush()
    engine.check_nothing_is_held()
    (again,) = engine.start_tokens(prompt(500))
    engine.decode(2)
    engine.finish(again)
    engine.check_only_the_tree_holds()


def test_a_pool_with_less_room_than_a_prefix_computes_later(caching: Make) -> None:
    engine = caching()
    engine.finish(*engine.start_tokens(prompt(640)))
    free = engine.allocator.hisparse_attn_allocator
    held = free.alloc(free.available_size() - 8 * PAGE)
    req = engine.request([*prompt(640), 1], new_tokens=1)
    assert engine.let_in(req) == []
    engine.check_all()
    assert engine.tree.total_size() == 640  # evicting it would make no room
    free.free(held)
    assert engine.let_in(req) == [req]
    assert DEVICE_PAGES > engine.extent(req)[0] // PAGE == 10
