import pytest

from hisparse_sidecar._core import HostPoolFull, InvalidArgument, WrongState


def test_a_fork_shares_full_pages_and_copies_the_partial_one(host) -> None:
    parent = host.open(300, append=200)
    pages = host.manager.host_pages(parent)
    for byte, page in enumerate(pages, start=1):
        host.fill_page(page, byte)
    fork = host.fork(parent, 200, 50)
    forked = host.manager.host_pages(fork)
    assert forked[:3] == pages[:3]
    assert forked[3] not in pages
    assert set(host.page_bytes(forked[3])) == {4}
    stats = host.manager.stats()
    assert (stats.host_pages_shared, stats.copied_pages, stats.forked) == (3, 1, 1)
    assert host.manager.append(fork, 50) == 200
    host.manager.check_integrity()


def test_a_fork_inside_an_open_block_shares_its_full_page(host) -> None:
    parent = host.open(300, append=200)
    host.manager.advance_pooled(parent, 0, 200)
    fork = host.fork(parent, 64, 64)
    assert host.manager.host_pages(fork) == host.manager.host_pages(parent)[:1]
    assert host.manager.pooled_state(fork, 0) == (0, 64)
    assert host.manager.stats().copied_pages == 0
    host.manager.append(fork, 64)
    assert host.manager.advance_pooled(fork, 0, 64) == (0, 1, 0)
    assert host.manager.host_pages(fork)[1] != host.manager.host_pages(parent)[1]


def test_a_fork_has_device_ranges_of_its_own(host) -> None:
    parent = host.open(300, append=200)
    fork = host.fork(parent, 200, 100)
    ours, theirs = host.manager.ranges(parent).as_dict(), host.manager.ranges(fork).as_dict()
    bases = [name for name in ours if name.endswith("_base") or name == "state_row"]
    assert all(ours[name] != theirs[name] for name in bases)
    assert host.manager.admitted_tokens(fork) == 300


def test_either_side_of_a_fork_may_end_first(host) -> None:
    for parent_first in (True, False):
        parent = host.open(256, append=256)
        fork = host.fork(parent, 256, 64)
        order = (parent, fork) if parent_first else (fork, parent)
        host.manager.close(order[0])
        assert len(host.manager.host_pages(order[1])) == 4
        host.manager.check_integrity()
        host.manager.close(order[1])
        assert host.manager.stats().host_pages_free == 16


def test_a_shared_page_is_copied_before_it_is_written(host) -> None:
    parent = host.open(256, append=256)
    pages = host.manager.host_pages(parent)
    for byte, page in enumerate(pages, start=1):
        host.fill_page(page, byte)
    fork = host.fork(parent, 256)
    host.manager.truncate(parent, 100)
    assert host.manager.host_pages(parent) == pages[:2]
    assert host.manager.append(parent, 1) == 100
    rewritten = host.manager.host_pages(parent)
    assert rewritten[0] == pages[0]
    assert rewritten[1] not in pages
    assert set(host.page_bytes(rewritten[1])) == {2}
    host.fill_page(rewritten[1], 99)
    assert host.manager.host_pages(fork) == pages
    assert set(host.page_bytes(pages[1])) == {2}
    host.manager.check_integrity()


def test_a_page_that_is_shared_no_more_is_written_in_place(host) -> None:
    parent = host.open(256, append=256)
    fork = host.fork(parent, 256)
    host.manager.truncate(parent, 100)
    reserved = host.manager.stats().host_pages_reserved
    host.manager.close(fork)
    pages = host.manager.host_pages(parent)
    host.manager.append(parent, 1)
    stats = host.manager.stats()
    assert host.manager.host_pages(parent) == pages
    assert (stats.copied_pages, stats.host_pages_reserved) == (0, reserved - 1)
    host.manager.check_integrity()


def test_a_fork_needs_room_only_for_what_it_does_not_share(host) -> None:
    parent = host.open(15 * 64, append=15 * 64)
    with pytest.raises(HostPoolFull, match="host pool full: need 2 pages, 1 free of 16"):
        host.fork(parent, 15 * 64, 65)
    before = host.manager.stats().as_dict()
    fork = host.fork(parent, 15 * 64, 64)
    host.manager.append(fork, 64)
    host.manager.close(fork)
    assert host.manager.stats().host_pages_free == before["host_pages_free"]
    host.manager.check_integrity()


def test_a_cut_into_shared_pages_is_refused_when_no_page_can_replace_them(host) -> None:
    parent = host.open(15 * 64, append=15 * 64)
    fork = host.fork(parent, 15 * 64, 0)
    with pytest.raises(HostPoolFull, match="need 4 pages, 1 free of 16"):
        host.manager.truncate(parent, 12 * 64 - 1)
    assert host.manager.length(parent) == 15 * 64
    host.manager.truncate(parent, 14 * 64)
    host.manager.close(fork)
    host.manager.truncate(parent, 0)
    host.manager.check_integrity()


def test_a_fork_longer_than_its_parent_is_refused(host) -> None:
    parent = host.open(100, append=50)
    with pytest.raises(InvalidArgument, match="length: found 51, needed 0 to 50"):
        host.fork(parent, 51)
    with pytest.raises(InvalidArgument, match="tokens of a sequence: found 0, needed 1 to"):
        host.fork(parent, 0)
    assert host.manager.length(host.fork(parent, 50)) == 50


def test_a_copy_in_a_closed_region_is_refused_with_nothing_changed(host) -> None:
    parent = host.open(100, append=50)
    host.region.close()
    before = host.manager.stats().as_dict()
    with pytest.raises(WrongState, match="open mappings of the region: found 0, needed 1"):
        host.fork(parent, 50, 10)
    assert host.manager.stats().as_dict() == before
    host.manager.check_integrity()
    host.manager.append(parent, 50)
    host.manager.close(parent)
