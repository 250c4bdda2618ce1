"""Lists that SGLang's indexer gets from our selection, over SGLang's pool and batches."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cases import naive_scores
from hisparse_sidecar import SelectionConfig
from tests.engines.sglang.passes import (
    Pass,
    decode_pass,
    expected,
    extend_pass,
    slots_of,
    verify_pass,
)
from tests.engines.sglang.world import (
    TOPK,
    World,
    make_backend,
    make_runner,
    make_world,
    server_args,
)
from tests.launches import Launches

SELECTIONS = {
    "flat": SelectionConfig("flat"),
    "hisa": SelectionConfig("hisa", num_kept_blocks=4, gate="off"),
    "adaptive": SelectionConfig(
        "hisa", num_kept_blocks=4, budget="adaptive", max_blocks=8, gate="off"
    ),
    "misa": SelectionConfig("misa", routed_heads=2),
    "misa_dagger": SelectionConfig("misa_dagger", routed_heads=1, candidates=256),
}
OPTIONS = {
    "flat": {"index_source": "flat"},
    "hisa": {"index_source": "hisa", "num_kept_blocks": 4},
    "adaptive": {"index_source": "adaptive", "num_kept_blocks": 4, "max_blocks": 8},
    "misa": {"index_source": "misa", "routed_heads": 2},
    "misa_dagger": {"index_source": "misa_dagger", "routed_heads": 1, "candidates": 256},
}
Make = Callable[..., World]
TOKENS = (700, 330, 64, 193)
PASSES: dict[str, Callable[[World], Pass]] = {
    "decode": lambda world: decode_pass(world, (700, 330, 64, 193)),
    "extend": lambda world: extend_pass(world, ((694, 700), (0, 30), (63, 64), (185, 193))),
    "verify": lambda world: verify_pass(world, (697, 327, 60, 190), 3),
}


@pytest.fixture(scope="module")
def filled(sglang: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Keys written once: every test asks for a backend of its own over the same pool."""
    arguments = server_args(tmp_path_factory.mktemp("model"), "--attention-backend", "hisparse")
    return make_world(make_runner(arguments), TOKENS)


@pytest.fixture
def make(filled: World, tmp_path: Path) -> Make:
    def made(options: dict[str, Any], *arguments: str, **changed: Any) -> World:
        config = json.dumps({"min_tokens": 0} | options)
        named = "--attention-backend", "hisparse", "--hisparse-config", config
        parts = vars(filled.runner) | {"server_args": server_args(tmp_path, *named, *arguments)}
        runner = SimpleNamespace(**parts | changed)
        return replace(filled, runner=runner, backend=make_backend(runner))

    return made


@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("name", SELECTIONS)
def test_every_row_selects_what_its_sequence_selects_alone(
    name: str, kind: str, make: Make
) -> None:
    speculative = ("--speculative-num-draft-tokens", "3") if kind == "verify" else ()
    world = make(OPTIONS[name], *speculative)
    made = PASSES[kind](world)

    for layer in (0, 1):
        wanted = slots_of(world, made, expected(world, made, layer, SELECTIONS[name]))
        assert made.select(world, layer).tolist() == wanted

    assert world.backend.hisparse.counts.as_dict() == {
        f"{'ragged' if kind == 'extend' else 'paged'}: selected": 2
    }


@pytest.mark.parametrize(
    ("name", "launched"),
    [
        ("hisa", ["select_blocks", "select_tokens"]),
        ("flat", ["paged_index_logits", "topk", "locate_rows"]),
    ],
)
def test_a_layer_after_the_first_launches_what_selects_alone(
    name: str, launched: list[str], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = Launches()
    monkeypatch.setattr("hisparse_sidecar.engines.sglang.backend.ops_of", lambda *_: launches.ops())
    world = make(OPTIONS[name])
    made = decode_pass(world, TOKENS)
    made.select(world, 0)

    with launches:
        launches.names.clear()
        made.select(world, 1)

    assert launches.names == launched


def test_hisa_that_keeps_every_page_is_flat(make: Make) -> None:
    world = make({"index_source": "hisa", "num_kept_blocks": 16})
    made = decode_pass(world, TOKENS)

    wanted = slots_of(world, made, expected(world, made, 0, SELECTIONS["flat"]))
    assert made.select(world, 0).tolist() == wanted


def test_flat_is_the_formulas_top_k(make: Make) -> None:
    world = make({"index_source": "flat"})
    made = decode_pass(world, TOKENS)

    found = made.select(world, 1)

    for row, (seq, pos) in enumerate(made.rows):
        scores = naive_scores(
            made.query[row : row + 1].float(),
            made.weights[row : row + 1, :, 0],
            world.keys[seq, 1][: pos + 1],
        )[0]
        count = min(TOPK, pos + 1)
        wanted = world.slots(seq, 0, pos + 1)[scores.topk(count).indices]
        listed = found[row][found[row] >= 0]
        assert set(listed.tolist()) == set(wanted.tolist())


@pytest.mark.parametrize("name", SELECTIONS)
def test_lists_are_as_long_as_sglangs_kernels_read_them(name: str, make: Make) -> None:
    world = make(OPTIONS[name] | ({"num_kept_blocks": 3} if name == "hisa" else {}))
    made = decode_pass(world, (641, 330, 64, 193))  # of the newest page one token, at the first

    found = made.select(world, 0)

    lengths = world.backend.forward_metadata.dsa_cache_seqlens_int32
    assert (found >= 0).sum(1).tolist() == lengths.tolist() == [128, 128, 64, 128]
    assert bool((found[:, 0] >= 0).all())


def test_unfused_lists_are_positions(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_DSA_FUSE_TOPK", "0")
    world = make(OPTIONS["hisa"])
    made = decode_pass(world, TOKENS)

    assert made.select(world, 0).tolist() == expected(world, made, 0, SELECTIONS["hisa"])


def test_ragged_lists_are_places_among_the_batchs_keys(make: Make) -> None:
    world = make(OPTIONS["hisa"])
    world.backend.dsa_kv_cache_store_fp8 = True  # then SGLang gathers the keys of a batch
    made = extend_pass(world, ((690, 700), (320, 330)))

    positions = expected(world, made, 0, SELECTIONS["hisa"])
    starts = {0: 0, 1: 700}
    assert made.select(world, 0).tolist() == [
        [pos + starts[seq] if pos >= 0 else -1 for pos in listed]
        for (seq, _), listed in zip(made.rows, positions, strict=True)
    ]


def test_rows_of_padding_get_nothing_and_a_given_place_is_written(make: Make) -> None:
    world = make(OPTIONS["hisa"])
    made = extend_pass(world, ((690, 700),))
    wanted = made.select(world, 0)
    made.query = torch.cat([made.query, made.query[:3]])
    made.weights = torch.cat([made.weights, made.weights[:3]])
    place = torch.full((13, TOPK), 5, dtype=torch.int32)

    found = made.select(world, 0, topk_result=place)

    assert found is place
    assert torch.equal(found[:10], wanted)
    assert bool((found[10:] == -1).all())


def test_layers_of_a_pass_share_its_plan_and_the_next_pass_makes_another(make: Make) -> None:
    world = make(OPTIONS["flat"])
    first = decode_pass(world, TOKENS)
    first.select(world, 0)
    plan = world.backend.hisparse._last
    first.select(world, 1)
    assert world.backend.hisparse._last[2] is plan[2]

    first.select(world, 0)  # the same metadata again, as before a graph is captured
    assert world.backend.hisparse._last[2] is not plan[2]

    second = decode_pass(world, (600, 330, 64, 193))
    wanted = slots_of(world, second, expected(world, second, 1, SELECTIONS["flat"]))
    assert second.select(world, 1).tolist() == wanted
