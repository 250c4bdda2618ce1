"""Calls that their callers have left: what they count as, and what they may still do."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from hisparse_sidecar._core import DeadlinePassed, TierDown
from hisparse_sidecar.remote import MooncakeOptions, MooncakeTier, Page
from hisparse_sidecar.remote.breaker import BreakerState
from tests.remote.pages import PAGE_BYTES, bytes_of, identity_of
from tests.remote.scripted_store import LONG, ScriptedStore

SHORT, NUM_LANES = 0.05, 12
SMALL_BYTES = 1000


@pytest.fixture
def store() -> ScriptedStore:
    return ScriptedStore()


@pytest.fixture
def tier(store: ScriptedStore) -> Iterator[MooncakeTier]:
    options = MooncakeOptions("", max_page_bytes=PAGE_BYTES, num_lanes=NUM_LANES)
    with MooncakeTier(store, options) as tier:
        yield tier
        store.may_go_on.set()


def key_of(page: int) -> str:
    return f"hisparse/{identity_of(page).hex()}"


def put(tier: MooncakeTier, page: int, deadline_seconds: float = LONG) -> None:
    content = bytes_of(page, SMALL_BYTES)
    tier.put(identity_of(page), content, num_tokens=64, deadline_seconds=deadline_seconds)


def get(tier: MooncakeTier, page: int, deadline_seconds: float = LONG) -> bytes | None:
    into = bytearray(SMALL_BYTES)
    is_found = tier.get(identity_of(page), into, deadline_seconds=deadline_seconds)
    return bytes(into) if is_found else None


def remove(tier: MooncakeTier, page: int, deadline_seconds: float = LONG) -> bool:
    return tier.remove(identity_of(page), deadline_seconds=deadline_seconds)


def keep_lanes_busy(store: ScriptedStore, tier: MooncakeTier) -> None:
    """No thread of the tier gets a turn before the store may go on."""
    blocks = SimpleNamespace(run=lambda: not store.may_go_on.wait(LONG))
    for lane in tier._calls._lanes.all:
        lane._jobs.put(blocks)  # type: ignore[arg-type]


def test_many_calls_that_one_deadline_ends_do_not_make_the_store_degraded(
    store: ScriptedStore, tier: MooncakeTier
) -> None:
    store.hanging_keys = {key_of(1)}
    deadline = time.monotonic() + 1.0
    late: list[DeadlinePassed] = []

    def come_late() -> None:
        try:
            get(tier, 1, deadline - time.monotonic())
        except DeadlinePassed as error:
            late.append(error)

    threads = [threading.Thread(target=come_late) for _ in range(NUM_LANES - 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(late) == NUM_LANES - 1
    assert tier.state is BreakerState.CLOSED
    assert tier.usage.failures == NUM_LANES - 1


def test_lanes_that_others_use_in_time_say_nothing_against_the_store(tier: MooncakeTier) -> None:
    put(tier, 1)
    with ExitStack() as held:
        for _ in range(NUM_LANES):
            reading = tier.read(identity_of(1), SMALL_BYTES, deadline_seconds=LONG)
            held.enter_context(reading)
        for _ in range(6):
            with pytest.raises(DeadlinePassed, match=f"{NUM_LANES} lanes in use, 0 by calls"):
                get(tier, 1, SHORT)
        assert tier.state is BreakerState.CLOSED
    assert get(tier, 1) == bytes_of(1, SMALL_BYTES)


def test_a_store_that_has_every_lane_hanging_is_spared(store: ScriptedStore) -> None:
    with MooncakeTier(store, MooncakeOptions("", max_page_bytes=64, num_lanes=2)) as tier:
        store.hanging_keys = {key_of(1)}
        for _ in range(5):
            with pytest.raises(DeadlinePassed):
                tier.holds(identity_of(1), deadline_seconds=SHORT)
        with pytest.raises(TierDown, match="5 calls failed"):
            tier.holds(identity_of(1), deadline_seconds=LONG)
        store.may_go_on.set()


def test_a_put_waits_for_a_removal_that_is_still_under_way(
    store: ScriptedStore, tier: MooncakeTier
) -> None:
    put(tier, 1)
    store.hanging_removals = {key_of(1)}
    with pytest.raises(DeadlinePassed):
        remove(tier, 1, SHORT)
    with pytest.raises(DeadlinePassed):
        put(tier, 1, SHORT)
    pages = [Page(identity_of(page), bytes_of(page, SMALL_BYTES), 64) for page in (1, 2)]
    with pytest.raises(DeadlinePassed):
        tier.put_many(pages, deadline_seconds=SHORT)
    put(tier, 3, 10.0)  # others do not wait
    store.may_go_on.set()
    put(tier, 1)
    assert get(tier, 1) == bytes_of(1, SMALL_BYTES)
    assert remove(tier, 1)


def test_a_removal_waits_for_a_put_that_is_still_under_way(
    store: ScriptedStore, tier: MooncakeTier
) -> None:
    store.hanging_puts = {key_of(1)}
    with pytest.raises(DeadlinePassed):
        put(tier, 1, SHORT)
    with pytest.raises(DeadlinePassed):
        remove(tier, 1, SHORT)
    assert not remove(tier, 2, 10.0)  # others do not wait
    store.may_go_on.set()
    assert remove(tier, 1)
    assert not store.objects


def test_a_put_that_was_left_before_it_began_puts_nothing(
    store: ScriptedStore, tier: MooncakeTier
) -> None:
    keep_lanes_busy(store, tier)
    with pytest.raises(DeadlinePassed):
        put(tier, 1, SHORT)
    store.may_go_on.set()
    with ExitStack() as held:  # until the lane of the put is back
        for _ in range(NUM_LANES):
            reading = tier.read(identity_of(1), SMALL_BYTES, deadline_seconds=LONG)
            assert held.enter_context(reading) is None


def test_a_removal_that_was_left_before_it_began_removes_nothing(
    store: ScriptedStore, tier: MooncakeTier
) -> None:
    put(tier, 1)
    keep_lanes_busy(store, tier)
    with pytest.raises(DeadlinePassed):
        remove(tier, 1, SHORT)
    store.may_go_on.set()
    with ExitStack() as held:  # until the lane of the removal is back
        for _ in range(NUM_LANES):
            reading = tier.read(identity_of(1), SMALL_BYTES, deadline_seconds=LONG)
            assert held.enter_context(reading) == bytes_of(1, SMALL_BYTES)


def test_a_removal_that_hangs_takes_no_page_from_its_reader(store: ScriptedStore) -> None:
    options = MooncakeOptions("", max_page_bytes=PAGE_BYTES, num_lanes=1)
    with MooncakeTier(store, options) as tier:
        for page in (1, 2, 3, 4):
            put(tier, page)
        for page in (2, 3):
            store.objects[key_of(page)] = store.objects[key_of(page)][:-1] + b"\0"
        store.hanging_removals = {key_of(2), key_of(3)}
        names = [identity_of(page) for page in (1, 2, 3)]
        with tier.read_many(names, SMALL_BYTES, deadline_seconds=1.0) as pages:
            assert pages[1:] == [None, None]
            store.may_go_on.set()
            with pytest.raises(DeadlinePassed, match="1 lanes in use"):
                get(tier, 4, SHORT)
            assert pages[0] == bytes_of(1, SMALL_BYTES)
        assert tier.usage.corrupt == 2
        assert get(tier, 4) == bytes_of(4, SMALL_BYTES)


def test_a_lane_that_is_left_once_comes_back_once(store: ScriptedStore) -> None:
    options = MooncakeOptions("", max_page_bytes=PAGE_BYTES, num_lanes=1)
    with MooncakeTier(store, options) as tier:
        for page in (1, 2, 3):
            put(tier, page)
        for page in (1, 2):
            store.objects[key_of(page)] = b"rubbish"
        store.hanging_removals = {key_of(1), key_of(2)}
        names = [identity_of(page) for page in (1, 2)]
        with tier.read_many(names, SMALL_BYTES, deadline_seconds=SHORT) as pages:
            assert pages == [None, None]
        assert tier.usage.failures == 1, "the second removal was not tried"
        store.may_go_on.set()
        with tier.read(identity_of(3), SMALL_BYTES, deadline_seconds=LONG) as page:
            assert page == bytes_of(3, SMALL_BYTES)
            with pytest.raises(DeadlinePassed, match="1 lanes in use, 0 by calls"):
                get(tier, 3, SHORT)
