from collections.abc import Callable

import pytest

from hisparse_sidecar._core import (
    DeviceArenaFull,
    DeviceCapacity,
    HostLayout,
    HostPoolFull,
    HostRegion,
    InvalidArgument,
    Manager,
    WrongState,
)


def test_admission_reserves_what_the_whole_sequence_may_need(host) -> None:
    seq = host.open(100, 100)
    stats = host.manager.stats()
    assert (stats.host_pages_reserved, stats.host_pages_free) == (4, 12)
    ranges = host.manager.ranges(seq)
    assert (ranges.slot_count, ranges.window_count) == (8, 2)
    assert (ranges.token_table_count, ranges.block_table_count) == (200, 2)
    assert (ranges.pooled_base % 64, ranges.pooled_count) == (0, 64)
    assert host.manager.length(seq) == 0
    assert host.manager.admitted_tokens(seq) == 200


def test_an_admitted_sequence_grows_in_a_full_pool(host) -> None:
    seq = host.open(64, 448)
    host.open(512)
    with pytest.raises(HostPoolFull, match="host pool full: need 1 pages, 0 free of 16"):
        host.open(1)
    assert host.manager.append(seq, 64) == 0
    assert host.manager.append(seq, 448) == 64
    assert len(set(host.manager.host_pages(seq))) == 8
    host.manager.check_integrity()


@pytest.mark.parametrize(
    ("arena", "capacity", "message"),
    [
        ("slots", 15, "need 8 slots in one range, 7 free of 15, longest free range 7"),
        ("window_slots", 3, "need 2 window slots in one range, 1 free of 3"),
        ("table_tokens", 250, "need 200 table tokens in one range, 50 free of 250"),
        ("table_blocks", 3, "need 2 table blocks in one range, 1 free of 3"),
        ("pooled_keys", 127, "need 64 pooled keys in one range, 0 free of 64"),
        ("sequences", 1, "need 1 state rows in one range, 0 free of 1"),
    ],
)
def test_one_full_arena_leaves_every_other_untouched(
    make_host: Callable, arena: str, capacity: int, message: str
) -> None:
    host = make_host(capacity={arena: capacity})
    first = host.open(200)
    before = host.manager.stats().as_dict()
    with pytest.raises(DeviceArenaFull, match=f"device arena full: {message}"):
        host.open(200)
    assert host.manager.stats().as_dict() == before | {"refused": 1}
    host.manager.check_integrity()
    host.manager.close(first)
    host.open(200)


def test_closing_gives_everything_back(host) -> None:
    before = host.manager.stats().as_dict()
    for _ in range(3):
        seq = host.open(130, 70, append=130)
        host.manager.close(seq)
    changes = {"opened": 3, "closed": 3, "appended_tokens": 390}
    assert host.manager.stats().as_dict() == before | changes


def test_freed_ranges_join_again(make_host: Callable) -> None:
    host = make_host(capacity={"slots": 24})
    seqs = [host.open(10) for _ in range(3)]
    for seq in (seqs[0], seqs[2], seqs[1]):
        host.manager.close(seq)
    whole = host.manager.open_sequence(10, 0, slots=24, window_slots=0)
    ranges = host.manager.ranges(whole)
    assert (ranges.slot_base, ranges.slot_count, ranges.window_count) == (0, 24, 0)


def test_a_lease_takes_pages_from_the_same_pool(host) -> None:
    with host.manager.lease_pages(10) as lease:
        assert len(set(lease.pages)) == 10
        with pytest.raises(HostPoolFull, match="need 8 pages, 6 free of 16"):
            host.open(512)
        assert host.manager.stats().host_pages_leased == 10
        host.manager.check_integrity()
    assert lease.pages == []
    host.open(512)


def test_a_dropped_lease_returns_its_pages(host) -> None:
    lease = host.manager.lease_pages(16)
    with pytest.raises(HostPoolFull, match="need 17 pages, 0 free of 16"):
        host.manager.lease_pages(17)
    del lease
    assert host.manager.stats().host_pages_free == 16


def test_a_lease_is_released_once_and_may_outlive_the_manager(make_host: Callable) -> None:
    host = make_host()
    kept, released = host.manager.lease_pages(2), host.manager.lease_pages(3)
    released.release()
    released.release()
    assert host.manager.stats().host_pages_free == 14
    del host
    assert len(kept.pages) == 2
    kept.release()


def test_a_region_too_small_for_its_layout_is_refused() -> None:
    layout = HostLayout(1, 1, 16, 8, 4)
    capacity = DeviceCapacity(1, 1, 1, 1, 64, 1)
    needed, found = layout.num_bytes, layout.num_bytes - 1
    message = f"bytes of the layout: found {needed}, needed 1 to {found}"
    with pytest.raises(InvalidArgument, match=message):
        Manager(HostRegion(found), layout, capacity)
    closed = HostRegion(needed)
    closed.close()
    with pytest.raises(WrongState, match="found 0, needed 1"):
        Manager(closed, layout, capacity)
    Manager(HostRegion(needed), layout, capacity)


@pytest.mark.parametrize(
    ("block_tokens", "message"),
    [
        (100, "block_tokens: found 100, needed a multiple of 64"),
        (0, "block_tokens: found 0, needed 64 to 65536"),
        (65600, "block_tokens: found 65600, needed 64 to 65536"),
    ],
)
def test_a_block_is_made_of_whole_pages(
    make_host: Callable, block_tokens: int, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        make_host(block_tokens=block_tokens)
    make_host(block_tokens=64)
