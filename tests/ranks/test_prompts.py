"""Prompts, resting sequences and lower tiers under ranks: all see the same, and the right bytes."""

import hashlib
import random

import pytest

from hisparse_sidecar import Sidecar
from hisparse_sidecar._core import FaultTier, HostRegion, MemoryTier
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.ranks import RankPlace, RankShare
from tests.pipeline.world import random_rows, small_config
from tests.ranks.processes import Group, layout_of, share_of

PAGE_TOKENS = 64
SLOTS = {"slots": 70, "window_slots": 6}
SECONDS = 20.0


class Prompts:
    """Random sequences of one rank; it writes those pages alone whose number is its own."""

    def __init__(self, share: RankShare, region: HostRegion, seed: int) -> None:
        self.share, self.choices = share, random.Random(seed)
        self.config = small_config(host_pages=24, max_sequences=8)
        self.layout, self.bytes = layout_of(self.config), memoryview(region)
        stems = [[self.choices.randrange(1000) for _ in range(200)] for _ in range(3)]
        self.stems = stems
        self.tokens: dict[int, list[int]] = {}
        self.resting: list[int] = []
        self.seen = hashlib.sha256()
        self.hits = self.resumed = self.refused = 0

    def act(self) -> None:
        action = self.choices.choice([self.open, self.open, self.rest, self.wake, self.grow])
        try:
            action()
        except HisparseError as error:
            self.refused += 1
            self.see(f"{type(error).__name__}: {error}")
        if len(self.tokens) > 6 or self.choices.random() < 0.2:
            self.end_one()

    def open(self) -> None:
        stem = self.choices.choice(self.stems)
        tokens = stem[: self.choices.randint(1, 200)]
        tokens = tokens + [self.choices.randrange(1000) for _ in range(self.choices.randint(1, 90))]
        handle, cached = self.share.open_prompt("", tokens, 80, **SLOTS, deadline_seconds=SECONDS)
        self.tokens[handle] = tokens[:cached]
        self.hits += cached > 0
        self.check(handle)
        self.extend(handle, tokens[cached:])

    def grow(self) -> None:
        for handle in [one for one in self.tokens if one not in self.resting][:1]:
            room = self.share.admitted_tokens(handle) - self.share.length(handle)
            self.extend(handle, [self.choices.randrange(1000) for _ in range(min(room, 20))])

    def extend(self, handle: int, tokens: list[int]) -> None:
        """One step, as a sidecar's: rows, pooled keys, the end, names, sharing."""
        if not tokens:
            return
        start = self.share.append_rows([(handle, len(tokens))], tokens)[0]
        for anchor in range(2):
            self.share.advance_pooled(handle, anchor, len(tokens))
        self.tokens[handle] = self.tokens[handle] + tokens
        for position in range(start, start + len(tokens)):
            self.write(handle, position)
        self.share.end_step(committed=True)
        self.share.publish(handle)
        self.check(handle)
        self.see(self.share.host_pages(handle))

    def rest(self) -> None:
        for handle in [one for one in self.tokens if one not in self.resting][:1]:
            self.share.preempt(handle)
            self.resting.append(handle)

    def wake(self) -> None:
        for handle in self.resting[:1]:
            length = self.share.resume(handle, **SLOTS, deadline_seconds=SECONDS)
            self.resting.remove(handle)
            assert length == len(self.tokens[handle])
            self.resumed += 1
            self.check(handle)

    def end_one(self) -> None:
        if self.tokens:
            handle = self.choices.choice(sorted(self.tokens))
            self.share.close(handle)
            del self.tokens[handle]
            self.resting = [one for one in self.resting if one != handle]

    def see(self, what: object) -> None:
        self.seen.update(repr(what).encode())

    # -- bytes --------------------------------------------------------------------------------

    def row(self, handle: int, position: int) -> slice:
        page = self.share.host_pages(handle)[position // PAGE_TOKENS]
        row = page * PAGE_TOKENS + position % PAGE_TOKENS
        start = self.layout.kv_offset(1) + row * self.config.kv.row_bytes
        return slice(start, start + 8)

    def wanted(self, handle: int, position: int) -> bytes:
        token = self.tokens[handle][position]
        return (token * 1_000_003 + position + 1).to_bytes(8, "little")

    def write(self, handle: int, position: int) -> None:
        page = self.share.host_pages(handle)[position // PAGE_TOKENS]
        if page % self.share.place.num_ranks == self.share.place.rank:
            self.bytes[self.row(handle, position)] = self.wanted(handle, position)

    def check(self, handle: int) -> None:
        """Every row is what its writer wrote, on this rank too, once all have met."""
        self.share.check_integrity()
        assert self.share.length(handle) == len(self.tokens[handle])
        for position in range(len(self.tokens[handle])):
            found = bytes(self.bytes[self.row(handle, position)])
            assert found == self.wanted(handle, position), f"{handle}, row {position}"
        self.share.check_integrity()
        self.see((self.share.ranges(handle), self.share.pooled_state(handle, 1)))


def live(place: RankPlace, seed: int, num_actions: int) -> tuple[str, int, int, int]:
    config = small_config(host_pages=24, max_sequences=8)
    share, region = share_of(place, config, lower=MemoryTier(256 * layout_of(config).page_bytes))
    prompts = Prompts(share, region, seed)
    for _ in range(num_actions):
        prompts.act()
    while prompts.tokens:
        prompts.end_one()
    return prompts.seen.hexdigest(), prompts.hits, prompts.resumed, prompts.refused


@pytest.mark.parametrize(("num_ranks", "seed"), [(2, 0), (3, 1)])
def test_ranks_share_prompts_and_rest_and_come_back_alike(num_ranks: int, seed: int) -> None:
    with Group(live, num_ranks, seed, 200) as group:
        reports = group.reports(180)
    assert reports == reports[:1] * num_ranks
    _, hits, resumed, _ = reports[0]
    assert hits >= 20
    assert resumed >= 5


def prompts_that_begin_alike(place: RankPlace | None) -> list[str]:
    """Through a sidecar: what each step gave, and what was found of each prompt."""
    seen = []
    with Sidecar(small_config(host_pages=48, max_step_rows=3, hot_slots=144), place) as sidecar:

        def step(sequence: int, tokens: list[int], kind: str) -> None:
            sidecar.begin_step([(sequence, len(tokens))], kind, token_ids=tokens)  # type: ignore[arg-type]
            for layer in range(3):
                rows = random_rows(sidecar.config, layer, len(tokens), sum(tokens))
                outputs = sidecar.run_layer(layer, rows)
                seen.append(hashlib.sha256(outputs.out.numpy().tobytes()).hexdigest())
            sidecar.commit_step()

        def opened(tokens: list[int]) -> int:
            prompt = sidecar.open_prompt(tokens, 150, tenant="one")
            seen.append(f"{prompt.cached_tokens} of {len(tokens)} tokens")
            step(prompt.sequence, tokens[prompt.cached_tokens :], "prefill")
            return prompt.sequence

        sidecar.add_tenant("one", 40)
        first = opened(list(range(200)))
        for token in range(70):
            step(first, [token, token + 1], "decode")
        second = opened([*range(200), *range(0, 140, 2)])
        sidecar.preempt(first)
        step(second, [5], "decode")
        seen.append(f"{sidecar.resume(first)} tokens are back")
        for sequence in (first, second):
            step(sequence, [6], "decode")
        sidecar.check_integrity()
        seen.append(str(sidecar.tenant_usage("one")))
        for sequence in (first, second):
            sidecar.close_sequence(sequence)
        seen.append(f"{sidecar.evict_idle(100)} idle pages given up")
        seen.append(str(sidecar.tenant_usage("one")))
    return seen


def test_sidecars_of_ranks_find_what_one_alone_finds() -> None:
    wanted = prompts_that_begin_alike(None)
    assert "192 of 270 tokens" in wanted
    with Group(prompts_that_begin_alike, 3) as group:
        for rank, seen in enumerate(group.reports(120)):
            assert seen == wanted, f"rank {rank}"


def other_tokens(place: RankPlace) -> str:
    share, _ = share_of(place, small_config(), lower=MemoryTier(1 << 26))
    sequence, _ = share.open_prompt("", [1, 2, 3], 9, **SLOTS, deadline_seconds=SECONDS)
    with pytest.raises(HisparseError) as caught:
        share.append_rows([(sequence, 3)], [1, 2, 4 if place.rank == 1 else 3])
    return f"{type(caught.value).__name__}: {caught.value}"


def test_ranks_that_are_told_other_tokens_diverge() -> None:
    with Group(other_tokens, 2) as group:
        for found in group.reports():
            assert found.startswith("WrongState: call 2: rank 1 made append(")


def resumed(share: RankShare, sequence: int) -> str:
    try:
        length = share.resume(sequence, **SLOTS, deadline_seconds=0.5)
    except HisparseError as error:
        return f"{type(error).__name__}: {error}"
    return f"{length}, {share.length(sequence)}, {share.host_pages(sequence)}"


def resume_over_faults(place: RankPlace, faults: dict[str, float]) -> list[str]:
    """What each try says of a sequence whose pages are below."""
    tier = FaultTier(MemoryTier(1 << 26), seed=0, **faults)  # type: ignore[arg-type]
    share, _ = share_of(place, small_config(), lower=tier)
    tokens = list(range(200))
    sequence, _ = share.open_prompt("", tokens, 9, **SLOTS, deadline_seconds=SECONDS)
    share.append_rows([(sequence, 200)], tokens)
    for anchor in range(2):
        share.advance_pooled(sequence, anchor, 200)
    share.end_step(committed=True)
    share.publish(sequence)
    share.preempt(sequence)
    assert share.drain(SECONDS) == (4, 0)
    seen = [resumed(share, sequence) for _ in range(2)]
    share.close(sequence)
    share.check_integrity()
    return seen


@pytest.mark.parametrize(
    ("faults", "wanted"),
    [
        ({"vanished": 1_000_000}, ("0, 0, []", "WrongState: ")),
        ({"slow": 1_000_000, "delay_seconds": 0.9}, ("DeadlinePassed: ", "DeadlinePassed: ")),
    ],
    ids=["lost", "slow"],
)
def test_what_a_tier_does_not_give_out_is_the_same_on_every_rank(
    faults: dict[str, float], wanted: tuple[str, str]
) -> None:
    with Group(resume_over_faults, 2, faults, deadline_seconds=2.0) as group:
        leader, follower = group.reports()
    assert leader == follower
    assert all(seen.startswith(one) for seen, one in zip(leader, wanted, strict=True)), leader
