from collections.abc import Callable

import pytest

from hisparse_sidecar._core import InvalidArgument, StaleHandle, UnknownSequence


def test_pages_follow_the_length(host) -> None:
    seq = host.open(300)
    for num_tokens, num_pages in [(63, 1), (1, 1), (1, 2), (127, 3), (108, 5)]:
        host.manager.append(seq, num_tokens)
        assert len(host.manager.host_pages(seq)) == num_pages
    assert host.manager.length(seq) == 300


def test_an_append_beyond_the_admitted_length_is_refused(host) -> None:
    seq = host.open(100, 20, append=100)
    with pytest.raises(InvalidArgument, match="end of the append: found 121, needed 1 to 120"):
        host.manager.append(seq, 21)
    with pytest.raises(InvalidArgument, match="num_tokens: found 0, needed 1 to"):
        host.manager.append(seq, 0)
    assert host.manager.append(seq, 20) == 100


def test_truncated_pages_are_promised_again(host) -> None:
    seq = host.open(512, append=300)
    pages = host.manager.host_pages(seq)
    host.manager.truncate(seq, 65)
    assert host.manager.host_pages(seq) == pages[:2]
    stats = host.manager.stats()
    assert (stats.host_pages_reserved, stats.host_pages_free) == (6, 8)
    host.open(512)
    assert host.manager.append(seq, 447) == 65
    with pytest.raises(InvalidArgument, match="length: found 513, needed 0 to 512"):
        host.manager.truncate(seq, 513)
    host.manager.truncate(seq, 512)
    host.manager.check_integrity()


def test_pooled_blocks_close_as_tokens_are_folded_in(host) -> None:
    seq = host.open(512, append=400)
    assert host.manager.advance_pooled(seq, 0, 100) == (0, 0, 100)
    assert host.manager.advance_pooled(seq, 0, 28) == (0, 1, 0)
    assert host.manager.advance_pooled(seq, 0, 272) == (1, 2, 16)
    assert host.manager.pooled_state(seq, 0) == (3, 16)
    with pytest.raises(InvalidArgument, match="end of the folded tokens: found 401, needed 1 to"):
        host.manager.advance_pooled(seq, 0, 1)
    with pytest.raises(InvalidArgument, match="anchor: found 1, needed 0 to 0"):
        host.manager.advance_pooled(seq, 1, 1)
    host.manager.append(seq, 1)
    assert host.manager.advance_pooled(seq, 0, 1) == (3, 0, 17)


@pytest.mark.parametrize(
    ("length", "state"),
    [(300, (2, 44)), (257, (2, 1)), (256, (2, 0)), (255, (1, 127)), (1, (0, 1)), (0, (0, 0))],
)
def test_truncate_reopens_a_closed_block(host, length: int, state: tuple[int, int]) -> None:
    seq = host.open(400, append=300)
    host.manager.advance_pooled(seq, 0, 300)
    host.manager.truncate(seq, length)
    assert host.manager.pooled_state(seq, 0) == state
    host.manager.check_integrity()


def test_truncate_keeps_metadata_that_lags_behind(host) -> None:
    seq = host.open(400, append=300)
    host.manager.advance_pooled(seq, 0, 130)
    host.manager.truncate(seq, 200)
    assert host.manager.pooled_state(seq, 0) == (1, 2)
    assert host.manager.advance_pooled(seq, 0, 70) == (1, 0, 72)


def test_a_closed_handle_is_stale_for_every_call(host) -> None:
    seq = host.open(100, append=10)
    host.manager.close(seq)
    again = host.open(100)
    manager = host.manager
    calls: list[Callable[[], object]] = [
        lambda: manager.append(seq, 1),
        lambda: manager.advance_pooled(seq, 0, 1),
        lambda: manager.truncate(seq, 0),
        lambda: host.fork(seq, 0, 1),
        lambda: manager.close(seq),
        lambda: manager.length(seq),
        lambda: manager.admitted_tokens(seq),
        lambda: manager.host_pages(seq),
        lambda: manager.pooled_state(seq, 0),
        lambda: manager.ranges(seq),
    ]
    for call in calls:
        with pytest.raises(StaleHandle, match="found generation 1, needed 2"):
            call()
    assert again != seq
    assert manager.append(again, 100) == 0


def test_a_handle_that_was_never_given_out_is_unknown(host) -> None:
    seq = host.open(100)
    for never in (0, 1, seq + 1, seq + (1 << 32), 2**64 - 1):
        with pytest.raises(UnknownSequence, match=r"unknown sequence 0x.*1 entries exist"):
            host.manager.length(never)
    assert host.manager.length(seq) == 0


def test_handles_of_one_entry_differ_by_their_generation(host) -> None:
    handles = []
    for _ in range(5):
        handles.append(host.open(1))
        host.manager.close(handles[-1])
    assert {handle & 0xFFFFFFFF for handle in handles} == {0}
    assert [handle >> 32 for handle in handles] == [1, 2, 3, 4, 5]
