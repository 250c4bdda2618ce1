"""How ranks find each other: who is let in, what is left of the socket, what each gets."""

import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hisparse_sidecar.errors import DeadlinePassed, InvalidArgument, TierDown, WrongState
from hisparse_sidecar.ranks import RankPlace
from tests.ranks.test_decisions import SLOTS
from tests.ranks.together import SECONDS, joins, share, together


def connect(stranger: socket.socket, path: Path) -> None:
    """Connects as soon as rank 0 listens: its socket is there a little earlier."""
    stranger.settimeout(SECONDS)
    until = time.monotonic() + SECONDS
    while stranger.connect_ex(str(path)):
        assert time.monotonic() < until
        time.sleep(0.01)


def wait_for(path: Path) -> None:
    until = time.monotonic() + SECONDS
    while not path.is_socket():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_ranks_map_the_same_bytes_and_leave_no_socket(path: Path) -> None:
    (leader, ours), (follower, theirs) = together(path)
    assert not path.exists()
    memoryview(ours)[4097] = 77
    assert memoryview(theirs)[4097] == 77
    assert follower.stats() == leader.stats()


def test_the_socket_is_for_its_owner_alone_and_strangers_are_hung_up_on(path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        leader = joins(threads, path, 0)
        wait_for(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for hello in (b"", b"\x08\0\0\0" + b"\x07" * 8, b"\x05\0\0\0\0\0\0\0\0"):
            with socket.socket(socket.AF_UNIX) as stranger:
                connect(stranger, path)
                stranger.sendall(hello)
                assert stranger.recv(1) == b""
        follower = joins(threads, path, 1)
        assert leader.result(SECONDS)[0].number == follower.result(SECONDS)[0].number == 0


def test_a_dead_socket_is_replaced_and_a_live_one_is_not(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with ThreadPoolExecutor(3) as threads:
        leader = joins(threads, path, 0)
        time.sleep(0.3)
        with pytest.raises(WrongState, match="rank 0 cannot listen"):
            share(RankPlace(0, 2, path, SECONDS, SECONDS))
        follower = joins(threads, path, 1)
        assert leader.result(SECONDS)
        assert follower.result(SECONDS)


def test_a_rank_that_dies_while_it_joins_is_named(path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        leader = joins(threads, path, 0, num_ranks=3, seconds=1.5)
        wait_for(path)
        with pytest.raises(DeadlinePassed):
            share(RankPlace(1, 3, path, SECONDS, 0.2))
        second = joins(threads, path, 2, num_ranks=3)
        with pytest.raises(TierDown, match="rank 1 has gone before all ranks had joined"):
            leader.result(SECONDS)
        with pytest.raises(TierDown, match="rank 0 has sent rank 2 away"):
            second.result(SECONDS)


def test_rank_0_alone_is_a_group(path: Path) -> None:
    alone, _ = share(RankPlace(0, 1, path))
    sequence = alone.open_sequence(100, 10, **SLOTS)
    assert alone.append_rows([(sequence, 70)]) == [0]
    assert len(alone.host_pages(sequence)) == 2


def test_each_host_page_has_one_writer(path: Path) -> None:
    shares = [joined for joined, _ in together(path, 3)]
    row_ids = torch.tensor([-1, 0, 63, 64, 128, 191, 192, 6400, -1])
    owned = torch.stack([share.own_rows(row_ids, 64) for share in shares])
    assert owned.max(0).values.tolist() == row_ids.tolist()
    assert ((owned >= 0).sum(0) == (row_ids >= 0)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 2}, "rank is 2, must be 0 to 1"),
        ({"num_ranks": 0}, "num_ranks is 0"),
        ({"deadline_seconds": 0}, "deadline_seconds is 0"),
    ],
)
def test_a_place_that_is_none_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        RankPlace(**({"rank": 0, "num_ranks": 2, "socket_path": Path("x")} | changes))  # type: ignore[arg-type]
