"""Many calls on a shared manager: every rank gets the decisions of one manager that is alone."""

import hashlib
import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from hisparse_sidecar._core import HostLayout, HostRegion, Manager
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.ranks import HostManager, RankPlace, StepRanks
from hisparse_sidecar.ranks.contract import SoleRank
from hisparse_sidecar.tiers.device_tier import device_capacity
from tests.pipeline.world import small_config
from tests.ranks.processes import Group, share_of

SLOTS = {"slots": 70, "window_slots": 6}


def decisions_config() -> SidecarConfig:
    return small_config(host_pages=96, max_sequences=12)


class Calls:
    """Random calls by a seed; the digest of all that came back, and of what is held."""

    def __init__(self, manager: HostManager, ranks: StepRanks, seed: int) -> None:
        self.manager, self.ranks, self.choices = manager, ranks, random.Random(seed)
        self.open: list[int] = []
        self.digest, self.made = hashlib.sha256(), 0

    def make(self, num_calls: int) -> str:
        while self.made < num_calls:
            one = self.choices.choice([self.start, self.fork, self.step, self.step, self.cut])
            self.note(one)
            if len(self.open) > 8:
                self.note(self.end)
        while self.open:
            self.note(self.end)
        self.see(self.manager.stats())
        return self.digest.hexdigest()

    def note(self, call: Callable[[], Any]) -> None:
        self.made += 1
        try:
            self.see(call())
        except HisparseError as error:
            self.see(f"{type(error).__name__}: {error}")
        for sequence in self.open[-2:]:
            self.see(self.manager.host_pages(sequence))
            self.see((self.manager.length(sequence), self.manager.ranges(sequence)))
            self.see([self.manager.pooled_state(sequence, anchor) for anchor in range(2)])

    def see(self, what: object) -> None:
        self.digest.update(repr(what).encode())

    def start(self) -> int:
        tokens = self.choices.randint(-2, 900), self.choices.randint(0, 90)
        self.open.append(self.manager.open_sequence(*tokens, **SLOTS))
        return self.open[-1]

    def fork(self) -> int | None:
        if not self.open:
            return None
        parent = self.choices.choice(self.open)
        length = self.choices.randint(0, self.manager.length(parent) + 1)
        self.open.append(self.manager.fork(parent, length, 40, **SLOTS))
        return self.open[-1]

    def step(self) -> list[int] | None:
        members = self.choices.sample(self.open, self.choices.randint(0, len(self.open)))
        rows = [(member, self.choices.randint(1, 70)) for member in members]
        refused = [row for row in rows if row[1] > self.room(row[0])]
        rows = refused[:1] or rows  # after others, their shared pages would stay copied
        if not rows:
            return None
        starts = self.ranks.append_rows(rows)
        for sequence, count in rows:
            for anchor in range(2):
                self.see(self.manager.advance_pooled(sequence, anchor, count))
        committed = self.choices.random() < 0.9
        self.ranks.end_step(committed=committed)
        if not committed:
            for (sequence, _), start in zip(rows, starts, strict=True):
                self.manager.truncate(sequence, start)
        return starts

    def room(self, sequence: int) -> int:
        return self.manager.admitted_tokens(sequence) - self.manager.length(sequence)

    def cut(self) -> None:
        if self.open:
            sequence = self.choices.choice(self.open)
            self.manager.truncate(
                sequence, self.choices.randint(0, self.manager.length(sequence) + 1)
            )

    def end(self) -> None:
        self.manager.close(self.open.pop(self.choices.randrange(len(self.open))))


def alone(seed: int, num_calls: int) -> str:
    config = decisions_config()
    row_bytes = config.kv.row_bytes, config.index.row_bytes
    layout = HostLayout(config.model.num_layers, 2, *row_bytes, config.host_pages)
    region, capacity = HostRegion(layout.num_bytes), device_capacity(config)
    manager = Manager(region, layout, capacity, block_tokens=config.block_tokens)
    return Calls(manager, SoleRank(manager), seed).make(num_calls)


def one_of_several(place: RankPlace, seed: int, num_calls: int) -> str:
    share, _ = share_of(place, decisions_config())
    digest = Calls(share, share, seed).make(num_calls)
    share.check_integrity()
    assert share.number >= num_calls * 0.8
    return digest


@pytest.mark.parametrize(("num_ranks", "seed"), [(2, 0), (4, 1)])
def test_ten_thousand_decisions_are_those_of_one_manager(num_ranks: int, seed: int) -> None:
    wanted = alone(seed, 10_000)
    with Group(one_of_several, num_ranks, seed, 10_000) as group:
        assert group.reports(180) == [wanted] * num_ranks


@pytest.mark.slow
def test_very_many_decisions_are_those_of_one_manager() -> None:
    """A million with RANK_DECISIONS=1000000, which takes some minutes on 2 cores."""
    num_calls = int(os.environ.get("RANK_DECISIONS", "200000"))
    wanted = alone(2, num_calls)
    with Group(one_of_several, 4, 2, num_calls, deadline_seconds=60.0) as group:
        assert group.reports(3600) == [wanted] * 4


def many_opens(place: RankPlace, num_opens: int) -> int:
    """Rank 0 decides far more than a socket holds before anybody reads."""
    share, _ = share_of(place, decisions_config())
    if not place.leads:
        time.sleep(1.0)
    for _ in range(num_opens):
        share.close(share.open_sequence(64, 0, **SLOTS))
    return share.number


def test_rank_0_waits_for_a_rank_that_is_far_behind() -> None:
    with Group(many_opens, 2, 4000) as group:
        assert group.reports() == [8000, 8000]
