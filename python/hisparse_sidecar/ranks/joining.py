"""How ranks find each other: rank 0 listens until all have come, and hands the host pool out.

A group lives and ends together: once it is complete nobody listens any more.
"""

import os
import socket
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hisparse_sidecar._core import HostRegion
from hisparse_sidecar.errors import DeadlinePassed, InvalidArgument, TierDown, WrongState
from hisparse_sidecar.ranks.calls import integers
from hisparse_sidecar.ranks.group_shape import GroupShape
from hisparse_sidecar.ranks.link import Link
from hisparse_sidecar.ranks.place import RankPlace
from hisparse_sidecar.requirements import require

_OWNER_ONLY_UMASK = 0o177
_RETRY_SECONDS = 0.02
_HELLO_SECONDS = 2.0  # a caller that says nothing must not keep the others out


def gather(
    place: RankPlace, shape: GroupShape, region: HostRegion, stats: bytes
) -> dict[int, Link]:
    """Waits for every follower, then lets all of them in; the streams by rank.

    Args:
        place: rank 0's.
        shape: what the others must have, too.
        region: the host pool; its descriptor goes to every follower.
        stats: of the manager, packed; they go with it.

    Raises:
        DeadlinePassed: not all have come; those that have are sent away.
        InvalidArgument: one was built for another shape; all are sent away.
        TierDown: one has gone while it waited for the others.
        WrongState: the socket path is in use.
    """
    until, links = time.monotonic() + place.join_seconds, dict[int, Link]()
    try:
        with _listening(place.socket_path) as listener:
            while len(links) < len(place.followers):
                _admit(_accepted(listener, links, place, until), links, shape, until)
        for rank, link in links.items():
            _let_in(rank, link, region, stats)
    except BaseException:
        for link in links.values():
            link.close()
        raise
    return links


def join(place: RankPlace, shape: GroupShape) -> tuple[Link, HostRegion, bytes]:
    """Finds rank 0 and waits until it lets all in: the stream, the host pool, packed stats.

    Raises:
        DeadlinePassed: rank 0 does not listen, or not all ranks have come.
        TierDown: rank 0 has gone, or has sent all ranks away.
        RegionError: what came is no sealed region.
    """
    until = time.monotonic() + place.join_seconds
    link = Link(_connected(place, until))
    try:
        link.send(array("q", [place.rank]).tobytes() + shape.packed(), until)
        stats, descriptors = link.receive_descriptor(until)
        return link, _attached(descriptors), stats
    except BaseException as error:
        link.close()
        if isinstance(error, TimeoutError):
            message = f"rank {place.rank} has joined, needed {place.num_ranks} ranks to join"
            raise DeadlinePassed(f"{message} in {place.join_seconds:g} s") from None
        if isinstance(error, ConnectionError):
            message = f"rank 0 has sent rank {place.rank} away, see its error: {error}"
            raise TierDown(message) from None
        raise


# -- rank 0 -------------------------------------------------------------------------------------


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A listener on `path`, which only the owner may use; the file goes with it."""
    _remove_dead(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        before = os.umask(_OWNER_ONLY_UMASK)
        try:
            listener.bind(str(path))
        except OSError as error:
            raise WrongState(f"rank 0 cannot listen on {path}: {error}") from None
        finally:
            os.umask(before)
        try:
            listener.listen()
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _remove_dead(path: Path) -> None:
    """Removes what a dead rank 0 has left."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:  # it listens, with a full backlog: the bind will say so
            return


def _accepted(
    listener: socket.socket, links: dict[int, Link], place: RankPlace, until: float
) -> Link:
    listener.settimeout(max(until - time.monotonic(), 0.001))
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        missing = [str(rank) for rank in place.followers if rank not in links]
        found = f"{len(links)} of {len(place.followers)} ranks have joined rank 0"
        needed = f"ranks {', '.join(missing)} are needed"
        raise DeadlinePassed(f"{found} in {place.join_seconds:g} s, {needed}") from None
    return Link(connection)


def _admit(link: Link, links: dict[int, Link], shape: GroupShape, until: float) -> None:
    """Takes the caller in, or hangs up on one that is no rank of this group.

    Raises:
        InvalidArgument: it is one, of another shape.
    """
    hello = _hello(link, until)
    rank = integers(hello[:8])[0] if len(hello) >= 8 and len(hello) % 8 == 0 else 0
    if not 1 <= rank < shape.numbers["num_ranks"] or rank in links:
        link.close()
        return
    try:
        shape.check(rank, hello[8:])
    except InvalidArgument:
        link.close()
        raise
    links[rank] = link


def _let_in(rank: int, link: Link, region: HostRegion, stats: bytes) -> None:
    try:
        link.send_descriptor(stats, region.fd)
    except ConnectionError as error:
        raise TierDown(f"rank {rank} has gone before all ranks had joined: {error}") from None


def _hello(link: Link, until: float) -> bytes:
    """What the caller says first; nothing from another user or one that is silent."""
    until = min(until, time.monotonic() + _HELLO_SECONDS)
    try:
        return link.receive(until) if link.peer_uid() == os.geteuid() else b""
    except (ConnectionError, TimeoutError):
        return b""


# -- the others ---------------------------------------------------------------------------------


def _connected(place: RankPlace, until: float) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(place.socket_path))
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as error:
            connection.close()
            if time.monotonic() > until:
                message = f"rank {place.rank} found no rank 0 on {place.socket_path}"
                raise DeadlinePassed(f"{message} in {place.join_seconds:g} s: {error}") from None
            time.sleep(_RETRY_SECONDS)
        else:
            return connection


def _attached(descriptors: list[int]) -> HostRegion:
    require(len(descriptors) == 1, f"rank 0 sent {len(descriptors)} descriptors, needed 1")
    try:
        return HostRegion.attach(descriptors[0])
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
