"""The tier over a real store on loopback: what Mooncake does when its processes die or fill up."""

import time
from collections.abc import Iterator

import pytest

from hisparse_sidecar._core import DeadlinePassed, TierDown, TierFull
from hisparse_sidecar.remote import MooncakeOptions, MooncakeTier, Page, connect
from hisparse_sidecar.remote.local_store import LocalMaster, LocalOwner
from hisparse_sidecar.remote.object_store import LONGEST_CALL_SECONDS, open_store
from tests.remote.pages import PAGE_BYTES, bytes_of, identity_of

LONG = 30.0
SOON = 1.0
LARGE_BYTES = 8 << 20
RECONNECT_SECONDS = 5.0


def options_of(master: LocalMaster, segment_bytes: int = 0) -> MooncakeOptions:
    return MooncakeOptions(
        master.address, segment_bytes=segment_bytes, max_page_bytes=LARGE_BYTES, num_lanes=2
    )


@pytest.fixture
def tier(master: LocalMaster, owner: LocalOwner) -> Iterator[MooncakeTier]:
    """A client that lends no memory: every byte goes to the owner and back."""
    with connect(options_of(master)) as tier:
        yield tier


def put(tier: MooncakeTier, page: int, num_bytes: int = PAGE_BYTES, seconds: float = LONG) -> None:
    content = bytes_of(page, num_bytes)
    tier.put(identity_of(page), content, num_tokens=64, deadline_seconds=seconds)


def get(
    tier: MooncakeTier, page: int, num_bytes: int = PAGE_BYTES, seconds: float = LONG
) -> bytes | None:
    into = bytearray(num_bytes)
    is_found = tier.get(identity_of(page), into, deadline_seconds=seconds)
    return bytes(into) if is_found else None


@pytest.mark.parametrize("num_bytes", [0, 1, 4095, PAGE_BYTES, LARGE_BYTES])
def test_a_page_comes_back_as_it_was_put(tier: MooncakeTier, num_bytes: int) -> None:
    put(tier, 1, num_bytes)
    assert get(tier, 1, num_bytes) == bytes_of(1, num_bytes)
    assert tier.holds(identity_of(1), deadline_seconds=LONG)


def test_pages_that_are_put_together_come_back_together(tier: MooncakeTier) -> None:
    pages = [Page(identity_of(page), bytes_of(page), 64) for page in range(9)]
    tier.put_many(pages[:8], deadline_seconds=LONG)
    names = [page.identity for page in reversed(pages)]
    assert tier.count_held(names[1:], deadline_seconds=LONG) == 8
    assert tier.count_held(names, deadline_seconds=LONG) == 0, "the first is not there"
    with tier.read_many(names, PAGE_BYTES, deadline_seconds=LONG) as found:
        assert found[0] is None
        assert found[1:] == [page.content for page in reversed(pages[:8])]


def test_a_page_in_shared_memory_comes_back(tier: MooncakeTier) -> None:
    pool = bytearray(bytes_of(1, LARGE_BYTES))
    tier.share(pool)
    tier.put(identity_of(1), pool, num_tokens=64, deadline_seconds=LONG)
    assert get(tier, 1, LARGE_BYTES) == bytes_of(1, LARGE_BYTES)
    with pytest.raises(TierDown, match="register_buffer"):
        tier.share(pool)


def test_a_missing_page_is_a_miss_not_an_empty_page(tier: MooncakeTier) -> None:
    assert get(tier, 1) is None
    assert get(tier, 1, 0) is None
    assert not tier.holds(identity_of(1), deadline_seconds=LONG)
    assert not tier.remove(identity_of(1), deadline_seconds=LONG)


def test_a_page_is_put_once_and_removed_within_its_lease(tier: MooncakeTier) -> None:
    put(tier, 1)
    tier.put(identity_of(1), b"other", num_tokens=1, deadline_seconds=LONG)
    assert get(tier, 1) == bytes_of(1)  # the read takes a lease
    assert tier.remove(identity_of(1), deadline_seconds=LONG)
    assert get(tier, 1) is None


def test_a_corrupt_page_is_a_miss_and_can_be_put_again(
    tier: MooncakeTier, master: LocalMaster
) -> None:
    store = open_store(options_of(master))
    key = f"hisparse/{identity_of(1).hex()}"
    put(tier, 1)
    frame = bytearray(store.get(key))  # type: ignore[attr-defined]  # not used by the tier
    frame[1000] ^= 1
    assert store.remove(key, True) == 0
    assert store.put(key, bytes(frame)) == 0  # type: ignore[attr-defined]
    assert get(tier, 1) is None
    assert tier.usage.corrupt == 1
    put(tier, 1)
    assert get(tier, 1) == bytes_of(1)
    store.close()


def test_a_full_store_makes_room_while_the_put_waits(tier: MooncakeTier) -> None:
    num_pages = 16  # twice what the owner has
    for page in range(num_pages):
        put(tier, page, LARGE_BYTES)
    assert tier.usage.full > 0
    pages = [get(tier, page, LARGE_BYTES) for page in range(num_pages)]
    assert any(page is None for page in pages)
    for number, page in enumerate(pages):
        assert page in (None, bytes_of(number, LARGE_BYTES))


def test_a_store_without_memory_is_full(master: LocalMaster) -> None:
    with connect(options_of(master)) as tier, pytest.raises(TierFull):
        put(tier, 1, seconds=0.5)


def test_a_killed_master_is_an_error_at_once_and_used_again_once_it_is_back(
    tier: MooncakeTier, master: LocalMaster
) -> None:
    put(tier, 1)
    master.kill()
    for _ in range(8):
        with pytest.raises((TierDown, DeadlinePassed)):
            put(tier, 2, seconds=SOON)
    with pytest.raises((TierDown, DeadlinePassed)):
        get(tier, 1, seconds=SOON)
    master.start()
    took = seconds_until_put(tier, 3)
    assert took <= RECONNECT_SECONDS
    assert get(tier, 3) == bytes_of(3)
    assert get(tier, 1) in (None, bytes_of(1))


def test_a_master_that_is_down_at_first_is_used_once_it_is_there(
    master_to_come: LocalMaster,
) -> None:
    with connect(options_of(master_to_come, segment_bytes=4 * LARGE_BYTES)) as tier:
        for _ in range(2):
            with pytest.raises(TierDown):
                put(tier, 1, seconds=SOON)
        assert not tier.is_up
        pool = bytearray(bytes_of(2, LARGE_BYTES))
        tier.share(pool)  # the store gets it when there is one
        master_to_come.start()
        assert seconds_until_put(tier, 1) <= RECONNECT_SECONDS
        assert tier.is_up
        assert get(tier, 1) == bytes_of(1)
        tier.put(identity_of(2), pool, num_tokens=64, deadline_seconds=LONG)
        assert get(tier, 2, LARGE_BYTES) == bytes_of(2, LARGE_BYTES)


def test_a_process_that_lends_memory_does_so_again_after_its_master_was_killed(
    master: LocalMaster,
) -> None:
    with connect(options_of(master, segment_bytes=4 * LARGE_BYTES)) as tier:
        put(tier, 1)
        master.kill()
        with pytest.raises((TierDown, DeadlinePassed)):
            put(tier, 2, seconds=SOON)
        master.start()
        assert seconds_until_put(tier, 3) <= RECONNECT_SECONDS
        assert get(tier, 3) == bytes_of(3)
        assert get(tier, 1) in (None, bytes_of(1))


def test_a_master_that_hangs_at_the_start_is_a_tier_that_is_down(master: LocalMaster) -> None:
    master.stop()
    with connect(options_of(master)) as tier, pytest.raises(TierDown):
        put(tier, 1)


def test_a_killed_owner_makes_its_pages_misses(tier: MooncakeTier, owner: LocalOwner) -> None:
    put(tier, 1)
    owner.kill()
    assert tier.holds(identity_of(1), deadline_seconds=LONG), "the store is not known to lie here"
    for _ in range(3):  # the store tries to connect for up to a second
        assert get(tier, 1) is None
    assert tier.usage.unreadable == 3


def test_an_owner_that_hangs_holds_nobody_beyond_the_deadline(
    tier: MooncakeTier, master: LocalMaster, owner: LocalOwner
) -> None:
    put(tier, 1)
    assert get(tier, 1) == bytes_of(1)
    owner.stop()
    for _ in range(5):
        with pytest.raises(DeadlinePassed):
            get(tier, 1, seconds=0.1)
    with pytest.raises(TierDown, match="5 calls failed"):
        get(tier, 1)
    owner.kill()  # the connections end, and with them the calls


def test_an_owner_that_hangs_ends_a_call_without_a_deadline_to_keep(
    tier: MooncakeTier, owner: LocalOwner
) -> None:
    put(tier, 1)
    owner.stop()
    start = time.monotonic()
    assert get(tier, 1, seconds=LONG) is None
    assert time.monotonic() - start < LONGEST_CALL_SECONDS
    assert (tier.usage.unreadable, tier.usage.failures) == (1, 1), "to be spared if it goes on"


def test_a_master_that_hangs_ends_a_call_without_a_deadline_to_keep(
    tier: MooncakeTier, master: LocalMaster
) -> None:
    put(tier, 1)
    master.stop()
    for call in (lambda: put(tier, 2, seconds=LONG), lambda: get(tier, 1, seconds=LONG)):
        start = time.monotonic()
        with pytest.raises(TierDown):
            call()
        assert time.monotonic() - start < LONGEST_CALL_SECONDS


def seconds_until_put(tier: MooncakeTier, page: int) -> float:
    start = time.monotonic()
    while not try_put(tier, page) and time.monotonic() - start < 4 * RECONNECT_SECONDS:
        time.sleep(0.05)
    return time.monotonic() - start


def try_put(tier: MooncakeTier, page: int) -> bool:
    try:
        put(tier, page, seconds=SOON)
    except (TierDown, TierFull, DeadlinePassed):
        return False
    return True
