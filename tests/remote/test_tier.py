"""The tier over a store of the test's own, which lies, hangs and fills up as it is told."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from hisparse_sidecar._core import DeadlinePassed, InvalidArgument, TierDown, TierFull, WrongState
from hisparse_sidecar.remote import BreakerLimits, MooncakeOptions, MooncakeTier, Page, RemoteUsage
from hisparse_sidecar.remote.breaker import BreakerState
from hisparse_sidecar.remote.frame import FRAME_BYTES
from hisparse_sidecar.remote.object_store import (
    ABSENT,
    FULL,
    LONGEST_CALL_SECONDS,
    UNREADABLE,
    WRONG_LENGTH,
)
from tests.remote.pages import PAGE_BYTES, bytes_of, identity_of
from tests.remote.scripted_store import LONG, ScriptedStore

SHORT = 0.05
OPTIONS = MooncakeOptions(master="", max_page_bytes=PAGE_BYTES, num_lanes=2)


@pytest.fixture
def store() -> ScriptedStore:
    return ScriptedStore()


@pytest.fixture
def tier(store: ScriptedStore) -> Iterator[MooncakeTier]:
    with MooncakeTier(store, OPTIONS) as tier:
        yield tier
        store.may_go_on.set()


def put(tier: MooncakeTier, page: int, deadline_seconds: float = LONG) -> None:
    tier.put(identity_of(page), bytes_of(page), num_tokens=64, deadline_seconds=deadline_seconds)


def get(tier: MooncakeTier, page: int, deadline_seconds: float = LONG) -> bytes | None:
    into = bytearray(b"\xee" * PAGE_BYTES)
    found = tier.get(identity_of(page), into, deadline_seconds=deadline_seconds)
    assert found or into == b"\xee" * PAGE_BYTES, "a miss wrote to its caller's bytes"
    return bytes(into) if found else None


def test_a_page_comes_back_as_it_was_put(tier: MooncakeTier) -> None:
    put(tier, 1)
    assert get(tier, 1) == bytes_of(1)
    assert get(tier, 2) is None
    assert tier.holds(identity_of(1), deadline_seconds=LONG)
    assert tier.remove(identity_of(1), deadline_seconds=LONG)
    assert not tier.remove(identity_of(1), deadline_seconds=LONG)
    assert not tier.holds(identity_of(1), deadline_seconds=LONG)
    assert tier.usage == RemoteUsage(puts=1, hits=1, misses=1)


def test_pages_are_counted_up_to_the_first_that_is_not_there(
    tier: MooncakeTier, store: ScriptedStore
) -> None:
    for page in (1, 2, 4):
        put(tier, page)
    names = list(map(identity_of, range(1, 5)))
    assert tier.count_held(names, deadline_seconds=LONG) == 2
    assert tier.count_held(names[:2], deadline_seconds=LONG) == 2
    store.codes = [0, ABSENT]
    assert tier.count_held(names, deadline_seconds=LONG) == 1
    store.codes = [0, -900]
    with pytest.raises(TierDown):
        tier.count_held(names, deadline_seconds=LONG)
    with pytest.raises(InvalidArgument, match="found 3 bytes, needed 32"):
        tier.count_held([b"abc"], deadline_seconds=LONG)


@pytest.mark.parametrize("num_bytes", [0, 1, 63, 65, PAGE_BYTES + 64 + 1])
def test_an_object_of_another_length_is_a_miss(
    store: ScriptedStore, tier: MooncakeTier, num_bytes: int
) -> None:
    store.objects[f"hisparse/{identity_of(1).hex()}"] = bytes(num_bytes)
    assert get(tier, 1) is None
    assert tier.usage == RemoteUsage(misses=1, corrupt=1)


@pytest.mark.parametrize("at", [0, 20, 59, 60, 64, 1000, PAGE_BYTES + 63])
def test_a_corrupt_page_is_a_miss_and_can_be_put_again(
    store: ScriptedStore, tier: MooncakeTier, at: int
) -> None:
    put(tier, 1)
    (key,) = store.objects
    frame = bytearray(store.objects[key])
    frame[at] ^= 4
    store.objects[key] = bytes(frame)
    assert get(tier, 1) is None
    put(tier, 1)
    assert get(tier, 1) == bytes_of(1)
    assert tier.usage.corrupt == 1


def test_an_answer_that_wrote_nothing_is_a_miss(store: ScriptedStore, tier: MooncakeTier) -> None:
    put(tier, 1)
    assert get(tier, 1) == bytes_of(1)  # the frame is in the lane's memory now
    for _ in OPTIONS.num_lanes * [0]:
        put(tier, 1)
        store.codes = [64 + PAGE_BYTES]
        assert get(tier, 1) is None
    assert tier.usage.corrupt == OPTIONS.num_lanes


def test_what_is_listed_and_cannot_be_read_is_a_miss(
    store: ScriptedStore, tier: MooncakeTier
) -> None:
    put(tier, 1)
    for _ in range(9):
        store.codes = [UNREADABLE]
        assert get(tier, 1) is None
    assert tier.holds(identity_of(1), deadline_seconds=LONG)
    assert (tier.usage.unreadable, tier.state) == (9, BreakerState.CLOSED)


def test_a_full_store_is_tried_again(store: ScriptedStore, tier: MooncakeTier) -> None:
    store.codes = [FULL] * 4
    put(tier, 1)
    assert get(tier, 1) == bytes_of(1)
    assert tier.usage.full == 4


def test_a_store_that_stays_full_is_a_typed_error(store: ScriptedStore, tier: MooncakeTier) -> None:
    store.codes = [FULL] * 1000
    with pytest.raises(TierFull, match=f"need {PAGE_BYTES + 64} bytes, no room in . tries"):
        put(tier, 1, 0.5)
    assert tier.state is BreakerState.CLOSED, "a full store answers"


def test_a_call_that_hangs_is_left_and_its_lane_comes_back(
    store: ScriptedStore, tier: MooncakeTier
) -> None:
    put(tier, 1)
    store.hanging_keys = set(store.objects)
    for _ in range(4):  # twice in a lane, twice without one
        with pytest.raises(DeadlinePassed):
            get(tier, 1, SHORT)
    assert store.num_calls == 1 + OPTIONS.num_lanes
    store.may_go_on.set()
    for _ in range(20):
        assert get(tier, 1) == bytes_of(1)
    assert_every_lane_is_free_once(tier)


def test_only_calls_with_little_time_are_handed_to_a_thread_that_may_hang(
    store: ScriptedStore, tier: MooncakeTier
) -> None:
    put(tier, 1, LONGEST_CALL_SECONDS + 1)
    assert get(tier, 1, LONGEST_CALL_SECONDS + 1) == bytes_of(1)
    assert store.called_by == {threading.current_thread().name}
    store.called_by.clear()
    put(tier, 2, LONGEST_CALL_SECONDS - 1)
    assert get(tier, 2, LONGEST_CALL_SECONDS - 1) == bytes_of(2)
    assert store.called_by == {"hisparse-remote"}


def test_a_call_that_hangs_takes_no_lane_of_others(
    store: ScriptedStore, tier: MooncakeTier
) -> None:
    put(tier, 1)
    store.hanging_keys = set(store.objects)
    put(tier, 2)
    with pytest.raises(DeadlinePassed):
        get(tier, 1, SHORT)
    for _ in range(10):
        assert get(tier, 2, deadline_seconds=10) == bytes_of(2)
    store.may_go_on.set()


def assert_every_lane_is_free_once(tier: MooncakeTier) -> None:
    with ExitStack() as held:
        for _ in range(OPTIONS.num_lanes):
            reading = tier.read(identity_of(1), PAGE_BYTES, deadline_seconds=LONG)
            assert held.enter_context(reading) == bytes_of(1)
        with pytest.raises(DeadlinePassed, match=f"{OPTIONS.num_lanes} lanes in use, 0 by"):
            get(tier, 1, SHORT)


def test_a_put_that_comes_late_stores_the_page_as_it_was(
    store: ScriptedStore, tier: MooncakeTier
) -> None:
    put(tier, 2)
    (key,) = store.objects
    store.objects.clear()
    store.hanging_keys = {key}
    page = bytearray(bytes_of(2))
    with pytest.raises(DeadlinePassed):
        tier.put(identity_of(2), page, num_tokens=64, deadline_seconds=SHORT)
    page[:8] = b"used for"  # another page, while the call still hangs
    store.may_go_on.set()
    assert_every_call_has_ended(store, key)
    assert get(tier, 2) == bytes_of(2)
    assert tier.usage.corrupt == 0


def assert_every_call_has_ended(store: ScriptedStore, key: str) -> None:
    deadline = time.monotonic() + LONG
    while key not in store.objects and time.monotonic() < deadline:
        time.sleep(0.001)
    assert key in store.objects


def test_a_store_that_fails_is_spared_and_then_tried_again(store: ScriptedStore) -> None:
    options = MooncakeOptions(
        "", max_page_bytes=PAGE_BYTES, breaker=BreakerLimits(5, probe_seconds=0.2)
    )
    with MooncakeTier(store, options) as tier:
        store.codes = [-900] * 5
        for _ in range(5):
            with pytest.raises(TierDown, match="found code -900"):
                put(tier, 1)
        with pytest.raises(TierDown, match="5 calls failed, 4 permitted"):
            put(tier, 1)
        assert store.num_calls == 5
        threading.Event().wait(0.25)
        put(tier, 1)
        assert tier.state is BreakerState.CLOSED


def test_a_refused_put_is_no_put(store: ScriptedStore, tier: MooncakeTier) -> None:
    for code in (UNREADABLE, WRONG_LENGTH):
        store.codes = [code]
        with pytest.raises(TierDown, match=f"found code {code}"):
            put(tier, 1)
    assert tier.usage.puts == 0


def test_a_page_can_be_read_where_it_lies(tier: MooncakeTier) -> None:
    put(tier, 1)
    with tier.read(identity_of(1), PAGE_BYTES, deadline_seconds=LONG) as page:
        assert page == bytes_of(1)


SMALL_BYTES = 1000


def small_pages(*numbers: int) -> list[Page]:
    return [Page(identity_of(page), bytes_of(page, SMALL_BYTES), 64) for page in numbers]


def read_small(tier: MooncakeTier, *numbers: int) -> list[bytes | None]:
    names = [identity_of(page) for page in numbers]
    with tier.read_many(names, SMALL_BYTES, deadline_seconds=LONG) as pages:
        return [page if page is None else bytes(page) for page in pages]


def test_pages_that_are_put_together_are_read_together_and_singly(tier: MooncakeTier) -> None:
    tier.put_many(small_pages(1, 2, 3), deadline_seconds=LONG)
    assert read_small(tier, 3, 4, 1) == [bytes_of(3, SMALL_BYTES), None, bytes_of(1, SMALL_BYTES)]
    into = bytearray(SMALL_BYTES)
    assert tier.get(identity_of(2), into, deadline_seconds=LONG)
    assert into == bytes_of(2, SMALL_BYTES)
    assert tier.usage == RemoteUsage(puts=3, hits=3, misses=1)


def test_one_corrupt_page_of_several_is_the_only_miss(
    store: ScriptedStore, tier: MooncakeTier
) -> None:
    tier.put_many(small_pages(1, 2, 3), deadline_seconds=LONG)
    key = f"hisparse/{identity_of(2).hex()}"
    store.objects[key] = store.objects[key][:-1] + b"\0"
    found = read_small(tier, 1, 2, 3)
    assert found == [bytes_of(1, SMALL_BYTES), None, bytes_of(3, SMALL_BYTES)]
    assert key not in store.objects, "a put would change nothing"


def test_only_what_found_no_room_is_put_again(store: ScriptedStore, tier: MooncakeTier) -> None:
    store.codes = [0, FULL, 0]
    tier.put_many(small_pages(1, 2, 3), deadline_seconds=LONG)
    assert store.num_calls == 4
    assert read_small(tier, 1, 2, 3) == [bytes_of(page, SMALL_BYTES) for page in (1, 2, 3)]
    assert (tier.usage.full, tier.usage.puts) == (1, 3)


def test_a_failure_of_one_page_is_one_of_the_call(store: ScriptedStore, tier: MooncakeTier) -> None:
    store.codes = [0, -900]
    with pytest.raises(TierDown, match="found code -900"):
        tier.put_many(small_pages(1, 2), deadline_seconds=LONG)
    assert (tier.usage.puts, tier.usage.failures) == (0, 1)
    store.codes = [0, -900]
    with pytest.raises(TierDown, match="found code -900"):
        read_small(tier, 1, 2)
    assert_every_lane_serves(tier)


def assert_every_lane_serves(tier: MooncakeTier) -> None:
    with ExitStack() as held:
        for _ in range(OPTIONS.num_lanes):
            reading = tier.read(identity_of(1), SMALL_BYTES, deadline_seconds=LONG)
            assert held.enter_context(reading) == bytes_of(1, SMALL_BYTES)


@pytest.fixture
def large_tier(store: ScriptedStore) -> Iterator[MooncakeTier]:
    with MooncakeTier(store, MooncakeOptions("", max_page_bytes=4 * LARGE_BYTES)) as tier:
        yield tier


LARGE_BYTES = 300_000


@pytest.mark.parametrize("is_shared", [False, True])
def test_large_pages_in_shared_memory_are_put_from_where_they_lie(
    store: ScriptedStore, large_tier: MooncakeTier, is_shared: bool
) -> None:
    pool = bytearray(bytes_of(1, LARGE_BYTES) + bytes_of(2, LARGE_BYTES) + bytes_of(3, SMALL_BYTES))
    if is_shared:
        large_tier.share(pool)
    view = memoryview(pool)
    parts = [view[:LARGE_BYTES], view[LARGE_BYTES:-SMALL_BYTES], view[-SMALL_BYTES:]]
    elsewhere = bytearray(bytes_of(4, LARGE_BYTES))
    pages = [Page(identity_of(i), part, 64) for i, part in enumerate([*parts, elsewhere], 1)]
    large_tier.put_many(pages, deadline_seconds=LONG)
    assert store.num_in_place == 2 * is_shared
    for page in pages:
        into = bytearray(memoryview(page.content).nbytes)
        assert large_tier.get(page.identity, into, deadline_seconds=LONG)
        assert into == page.content


def test_a_page_that_is_only_in_part_in_shared_memory_is_copied(
    store: ScriptedStore, large_tier: MooncakeTier
) -> None:
    pool = memoryview(bytearray(bytes_of(1, 2 * LARGE_BYTES)))
    large_tier.share(pool[: LARGE_BYTES - 1])
    page = Page(identity_of(1), pool[:LARGE_BYTES], 64)
    large_tier.put_many([page], deadline_seconds=LONG)
    assert store.num_in_place == 0
    into = bytearray(LARGE_BYTES)
    assert large_tier.get(identity_of(1), into, deadline_seconds=LONG)
    assert into == pool[:LARGE_BYTES]


def test_a_shared_page_that_changes_under_a_late_put_is_a_miss(
    store: ScriptedStore, large_tier: MooncakeTier
) -> None:
    pool = bytearray(bytes_of(1, LARGE_BYTES))
    large_tier.share(pool)
    key = f"hisparse/{identity_of(1).hex()}"
    store.hanging_keys = {key}
    with pytest.raises(DeadlinePassed):
        large_tier.put(identity_of(1), pool, num_tokens=64, deadline_seconds=SHORT)
    pool[:8] = b"used for"  # another page, while the call still hangs
    store.may_go_on.set()
    assert_every_call_has_ended(store, key)
    into = bytearray(LARGE_BYTES)
    assert not large_tier.get(identity_of(1), into, deadline_seconds=LONG)
    assert large_tier.usage.corrupt == 1


def test_pages_that_do_not_fit_a_lane_together_are_refused(
    store: ScriptedStore, tier: MooncakeTier
) -> None:
    half = PAGE_BYTES // 2
    names, room = [identity_of(1), identity_of(2)], PAGE_BYTES - FRAME_BYTES
    with pytest.raises(InvalidArgument, match=f"2 pages: found {2 * half} .* needed 0 to {room}"):
        tier.put_many([Page(name, bytes(half), 64) for name in names], deadline_seconds=LONG)
    with (
        pytest.raises(InvalidArgument, match=f"2 pages: found {2 * half}"),
        tier.read_many(names, half, deadline_seconds=LONG),
    ):
        pass
    with pytest.raises(InvalidArgument, match="0 pages"):
        tier.put_many([], deadline_seconds=LONG)
    assert store.num_calls == 0


def test_what_was_asked_wrongly_is_refused(store: ScriptedStore, tier: MooncakeTier) -> None:
    with pytest.raises(InvalidArgument, match="found 3 bytes, needed 32"):
        tier.holds(b"abc", deadline_seconds=LONG)
    with pytest.raises(InvalidArgument, match=f"needed 0 to {PAGE_BYTES}"):
        tier.get(identity_of(1), bytearray(PAGE_BYTES + 1), deadline_seconds=LONG)
    with pytest.raises(InvalidArgument, match="num_tokens: found 65, needed 1 to 64"):
        tier.put(identity_of(1), b"", num_tokens=65, deadline_seconds=LONG)
    assert store.num_calls == 0


def test_a_closed_tier_is_refused(store: ScriptedStore) -> None:
    with MooncakeTier(store, OPTIONS) as tier:
        pass
    tier.close()
    assert store.num_closed == 1
    with pytest.raises(WrongState):
        put(tier, 1)
