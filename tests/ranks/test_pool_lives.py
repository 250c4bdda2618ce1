"""Ranks with managers of their own over one host pool: each reads what the first one wrote."""

from contextlib import suppress
from random import Random
from typing import Any

import pytest
import torch

from hisparse_sidecar.errors import DeviceArenaFull
from hisparse_sidecar.ranks import RankPlace
from tests.pipeline import world
from tests.pipeline.engine_index_world import IndexEngine
from tests.ranks.pool_world import (
    Pass,
    PoolLife,
    forbid_writes,
    group_of,
    meet,
    pools_of_this_process,
)
from tests.ranks.processes import Group

ON_GPUS = pytest.param("cuda", marks=pytest.mark.gpu)


def device_of(place: RankPlace, kind: str) -> str:
    return kind if kind == "cpu" else f"cuda:{place.rank}"


def needs_gpus(kind: str, num_ranks: int) -> None:
    found = torch.cuda.device_count() if kind == "cuda" else num_ranks
    if found < num_ranks:
        pytest.skip(f"{num_ranks} ranks need as many GPUs, {found} found")


def live(place: RankPlace, kind: str, seed: int, turns: int) -> dict[str, object]:
    device = device_of(place, kind)
    with group_of(place, device) as group:
        life = PoolLife(place, group, device)
        life.live(seed, turns)
        maps = pools_of_this_process()
        return life.end() | {"maps": maps}


@pytest.mark.parametrize("kind", ["cpu", ON_GPUS])
@pytest.mark.parametrize(("num_ranks", "seed"), [(2, 1), (2, 2), (4, 3)])
def test_every_rank_reads_what_rank_0_wrote(kind: str, num_ranks: int, seed: int) -> None:
    needs_gpus(kind, num_ranks)
    with Group(live, num_ranks, kind, seed, 60 if kind == "cpu" else 400) as group:
        found = group.reports(300)
    first = found[0]
    assert first["looked_at"] > 2000
    assert [one["wrong"] for one in found] == [0] * num_ranks
    assert [one["writes"] for one in found] == [True] + [False] * (num_ranks - 1)
    assert all(one["free"] for one in found)
    for name in ("looked_at", "compared", "region", "maps"):
        assert [one[name] for one in found] == [first[name]] * num_ranks
    assert len(first["maps"]) == 1


class IndexRank(IndexEngine):
    """Whose passes end their layers with a sum over the ranks."""

    def __init__(self, place: RankPlace, layer_ends: Pass) -> None:
        super().__init__(place=place)
        self.layer_ends = layer_ends

    def layer(self, *given: Any) -> torch.Tensor:
        found = super().layer(*given)
        self.layer_ends.end_layer()
        return found

    def begin(self, group: Any, tokens: int, new_tokens: int) -> int:
        """As `open`, until the prompt is on the host on every rank."""
        sequence = self.open(tokens, new_tokens)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        meet(group)
        return sequence


def live_with_index_keys(place: RankPlace, kind: str, seed: int) -> int:
    """Lists of every step are looked at; the number of steps."""
    torch.set_num_threads(1)
    device = device_of(place, kind)
    world.PLACE = world.Place(device, "auto")
    with group_of(place, device) as group:
        engine = IndexRank(place, Pass(group, torch.device(device)))
        if not place.leads and kind == "cpu":
            forbid_writes(engine.tier._host.region)
        random, running, num_steps = Random(seed), list[int](), 0
        for _ in range(25):
            if len(running) < 3 and random.random() < 0.5:
                with suppress(DeviceArenaFull):  # on every rank, or they would fall apart
                    running.append(engine.begin(group, random.randint(1, 700), 200))
            elif len(running) == 3 and random.random() < 0.3:
                engine.tier.close_sequence(running.pop(random.randrange(3)))
            for _ in range(random.randint(1, 9) if running else 0):
                name, padding = random.choice(["hisa", "adaptive"]), 3 - len(running)
                engine.step(running, name, padding)
                num_steps += 1
        if kind != "cpu":
            torch.cuda.synchronize(engine.device)
        meet(group)
        engine.tier.check_integrity()
        meet(group)
        engine.tier.close()
        return num_steps


@pytest.mark.parametrize("kind", ["cpu", ON_GPUS])
def test_every_rank_selects_from_index_keys_that_rank_0_wrote(kind: str) -> None:
    needs_gpus(kind, 2)
    with Group(live_with_index_keys, 2, kind, 1) as group:
        first, other = group.reports(300)
    assert first == other > 50
