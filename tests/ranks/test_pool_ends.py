"""Ranks of one host pool that decide otherwise, die or are late: a typed error on every rank."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import torch

from hisparse_sidecar.backends import ops_of
from hisparse_sidecar.engine_rows import EngineRowTier
from hisparse_sidecar.engines.sglang.offload.rank_agreement import agree
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.ranks import RankPlace
from tests.ranks.pool_world import CONFIG, PAGE, PoolLife, group_of, meet
from tests.ranks.processes import Group

SECONDS = 60.0


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(HisparseError) as caught:
        call()
    return f"{type(caught.value).__name__}: {caught.value}"


def error_in_time(call: Callable[[], object]) -> str:
    """Of a call that is repeated until it raises."""

    def repeat() -> None:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            call()

    return error_of(repeat)


def begin(place: RankPlace, group: object) -> tuple[PoolLife, list[int]]:
    life = PoolLife(place, group, "cpu")
    return life, [life.open(Random(1), 100, 60), life.open(Random(2), 127, 60)]


# -- other decisions ----------------------------------------------------------------------------


def take_another_page(place: RankPlace, call: str) -> str:
    """Rank 1 has lost a page to nobody; what the next calls come to."""
    with group_of(place, "cpu") as group:
        life, sequences = begin(place, group)
        lease = life.tier.cached.keep(sequences[0], 0, 1)
        if place.rank == 1:
            life.kept.append((0, life.tier._manager.lease_pages(1)))

        def make() -> None:
            if call == "step":
                life.tier.append(sequences)
                meet(group)  # each has room for 60 steps: the next one waits for rank 1's end
            elif call == "prompt":
                sequence = life.tier.open(70, 1)
                life.tier.take_prompt(sequence, life.numbers(range(70)))
                life.tier.close_sequence(sequence)
            else:
                leases = [lease] if place.leads else [life.kept[0][1]]
                life.tier.cached.load(leases, life.numbers(range(PAGE)))

        # rank 0 notices with a later decision
        found = error_in_time(make) if place.leads else error_of(make)
        if call == "step" and not place.leads:
            meet(group)
        again = error_of(lambda: life.tier.append([sequences[0]]))
        assert again == found
        life.tier.close()
        return found


@pytest.mark.parametrize("call", ["step", "prompt", "load"])
def test_ranks_that_take_other_pages_fail_before_anything_is_read(call: str) -> None:
    with Group(take_another_page, 2, call) as group:
        first, other = group.reports()
    kind = f"{call} of "
    assert other.startswith(f"WrongState: decision 3: rank 1 has a {kind}")
    assert f"rank 0 a {kind}" in other
    assert first.startswith("TierDown: rank 1 has gone, decision ")
    assert first.endswith(other.removeprefix("WrongState: "))


def wait_for_room_alone(place: RankPlace) -> str:
    """Rank 1 finds no room, and so takes no decision; nothing else is going on."""
    with group_of(place, "cpu") as group:
        life, _ = begin(place, group)
        if place.leads:
            life.tier.take_prompt(life.tier.open(70, 1), life.numbers(range(70)))
        told = error_of(lambda: agree(group, [1], life.tier.num_compared))
        life.tier.close()
        return told


def test_a_rank_that_waits_where_others_go_on_is_found_by_the_agreement() -> None:
    with Group(wait_for_room_alone, 2) as group:
        found = group.reports()
    assert found == ["WrongState: ranks have taken 2 to 3 decisions on host pages"] * 2


def make_another_size(place: RankPlace) -> str:
    config = CONFIG if place.leads else replace(CONFIG, host_pages=CONFIG.host_pages + 1)
    memory = [torch.zeros(2000, 656, dtype=torch.uint8) for _ in config.groups]
    return error_of(lambda: EngineRowTier(config, memory, ops_of("auto", "cpu"), place=place))


def test_ranks_of_other_sizes_do_not_begin() -> None:
    with Group(make_another_size, 2) as group:
        first, other = group.reports()
    assert first == "InvalidArgument: host_pages is 33 on rank 1, 32 on rank 0"
    assert other.startswith("TierDown: rank 0 has sent rank 1 away")


# -- deaths and delays --------------------------------------------------------------------------


def die(place: RankPlace, victim: int) -> str:
    with group_of(place, "cpu") as group:
        life, (sequence, _) = begin(place, group)
        lease, rows = life.tier.cached.keep(sequence, 0, 1), life.numbers(range(PAGE))
        torch.distributed.barrier(group)
        if place.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        told = error_in_time(lambda: life.tier.cached.load([lease], rows))
        lease.release()
        life.tier.close()
        return told


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_a_rank_ends_the_others(victim: int) -> None:
    with Group(die, 3, victim) as group:
        others = [rank for number, rank in enumerate(group.ranks) if number != victim]
        found = [rank.report() for rank in others]
    assert all(one.startswith("TierDown: ") for one in found)
    assert f"rank {victim} has gone, " in found[0]


def come_late(place: RankPlace, late: int) -> str:
    with group_of(place, "cpu") as group:
        life, sequences = begin(place, group)
        told, wait = "nothing", life.tier.end_reads
        if place.rank != late:
            told = error_of(wait if place.leads else lambda: life.tier.append(sequences))
        torch.distributed.barrier(group)
        life.tier.close()
        return told


@pytest.mark.parametrize("late", [0, 1])
def test_a_late_rank_is_named_when_the_deadline_passes(late: int) -> None:
    with Group(come_late, 2, late, deadline_seconds=0.5) as group:
        found = group.reports()
    assert found[late] == "nothing"
    assert found[1 - late] == (
        "DeadlinePassed: rank 0 did not come to decision 3, a step, in 0.5 s"
        if late == 0
        else "DeadlinePassed: rank 1 did not end its reads after decision 2 in 0.5 s"
    )


def wait_for_reads(place: RankPlace) -> list[int]:
    """Rank 0 writes a page again when the other has read it: it would see the new bytes else."""
    with group_of(place, "cpu") as group:
        life, (sequence, _) = begin(place, group)
        lease = life.tier.cached.keep(sequence, 0, 1)
        seen = []
        for turn in range(20):
            if place.leads:
                life.tier.end_reads()
                life.tier._host.kv_rows[0][lease.pages[0] * PAGE] = turn + 1
            else:
                time.sleep(0.002)
                seen.append(int(life.tier._host.kv_rows[0][lease.pages[0] * PAGE, 0]))
                life.tier.end_reads()
            torch.distributed.barrier(group)
        lease.release()
        life.tier.close()
        return seen


def test_rank_0_waits_until_the_others_have_read() -> None:
    with Group(wait_for_reads, 2) as group:
        _, seen = group.reports()
    assert seen[1:] == list(range(1, 20))
