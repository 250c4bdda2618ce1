import pytest

from hisparse_sidecar._core import InvalidArgument, StaleHandle, WrongState


def test_a_sequence_begins_with_pages_of_leases_whose_sequence_is_closed(host) -> None:
    first = host.open(200, append=200)
    pages = host.manager.host_pages(first)
    lease = host.manager.share_pages(first, 0, 3)
    rest = lease.split_off(1)
    assert (lease.pages, rest.pages) == (pages[:1], pages[1:3])
    host.manager.close(first)
    second = host.manager.open_shared([lease, rest], 200, 50, slots=8, window_slots=2)
    assert host.manager.length(second) == 192
    assert host.manager.host_pages(second) == pages[:3]
    stats = host.manager.stats()
    assert (stats.host_pages_leased, stats.host_pages_shared, stats.host_pages_free) == (3, 3, 12)
    host.manager.append(second, 58)
    assert host.manager.host_pages(second)[:3] == pages[:3]
    host.manager.close(second)
    host.manager.check_integrity()
    lease.release()
    rest.release()
    assert host.manager.stats().host_pages_free == 16


def test_a_lease_may_be_named_twice_and_a_released_one_has_no_pages(host) -> None:
    first = host.open(64, append=64)
    lease, gone = host.manager.share_pages(first, 0, 1), host.manager.share_pages(first, 0, 1)
    gone.release()
    both = host.manager.open_shared([lease, gone, lease], 128, 0, slots=8, window_slots=2)
    assert host.manager.host_pages(both) == lease.pages * 2
    host.manager.check_integrity()
    with pytest.raises(WrongState, match="pages that are held"):
        gone.split_off(0)
    with pytest.raises(InvalidArgument, match="pages to keep: found 2, needed 0 to 1"):
        lease.split_off(2)


def test_what_is_no_full_page_of_an_open_sequence_is_not_shared(host, make_host) -> None:
    first = host.open(127, append=127)
    with pytest.raises(InvalidArgument, match="pages to share: found 2, needed 0 to 1"):
        host.manager.share_pages(first, 0, 2)
    lease = host.manager.share_pages(first, 0, 1)
    with pytest.raises(InvalidArgument, match="pages of the prefix: found 1, needed 0 to 0"):
        host.manager.open_shared([lease], 63, 10, slots=8, window_slots=2)
    with pytest.raises(WrongState, match="another manager"):
        make_host().manager.open_shared([lease], 64, 10, slots=8, window_slots=2)
    host.manager.close(first)
    with pytest.raises(StaleHandle):
        host.manager.share_pages(first, 0, 1)
    host.manager.check_integrity()
