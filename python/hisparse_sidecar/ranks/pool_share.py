"""Ranks of one host pool that each decide for themselves: rank 0 writes, decisions are compared.

Beside `RankShare`, where rank 0 decides for all: here each rank has a manager of its own, of the
same sizes. Who makes the same calls on every rank gets the same pages on every rank, for the core
decides by its calls alone. Each decision that rows are read or written by is compared before they
are: what rank 0 has decided goes to the others, who wait for it.
"""

import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

from hisparse_sidecar._core import HostRegion
from hisparse_sidecar.errors import DeadlinePassed, HisparseError, TierDown, WrongState
from hisparse_sidecar.ranks.calls import integers
from hisparse_sidecar.ranks.group_shape import GroupShape
from hisparse_sidecar.ranks.joining import gather, join
from hisparse_sidecar.ranks.link import Link
from hisparse_sidecar.ranks.place import RankPlace

_FAREWELL_SECONDS = 1.0
_WHAT_BYTES = 8

Numbers = Callable[[], Sequence[int]]


@dataclass(frozen=True)
class PoolDecision:
    """What one rank has decided, as integers.

    Attributes:
        number: decisions up to this one.
        what: at most 8 ASCII letters.
        numbers: what it comes to.
    """

    number: int
    what: str
    numbers: list[int]

    def encoded(self) -> bytes:
        """As a record; the inverse of `decoded`."""
        numbers = array("q", [self.number, *self.numbers]).tobytes()
        return self.what.encode().ljust(_WHAT_BYTES) + numbers

    @staticmethod
    def decoded(body: bytes) -> "PoolDecision":
        """Of a record."""
        number, *numbers = integers(body[_WHAT_BYTES:])
        return PoolDecision(number, body[:_WHAT_BYTES].decode().rstrip(), numbers)

    def difference(self, other: "PoolDecision") -> str:
        """Where two decisions differ first, this one and rank 0's."""
        found = f"{self.what} of {len(self.numbers)} numbers"
        needed = f"{other.what} of {len(other.numbers)} numbers"
        pairs = zip(self.numbers, other.numbers, strict=False)
        for place, (mine, theirs) in enumerate(pairs):
            if mine != theirs:
                return f"{found}, {mine} at {place}; rank 0 a {needed}, {theirs} at {place}"
        return f"{found}; rank 0 a {needed}"


class PoolShare(ABC):
    """One rank's share of a host pool.

    After an error each call but `leave` raises it again: the ranks end together.

    Attributes:
        writes: whether this rank writes the pool; the others read it alone.
        number: decisions that were compared.
    """

    writes = False

    def __init__(self) -> None:
        self.number = 0
        self._broken: HisparseError | None = None

    @abstractmethod
    def compare(self, what: str, numbers: Numbers) -> None:
        """Compares a decision with the other ranks', before anything is read or written by it.

        Args:
            what: kind of the decision, at most 8 ASCII letters.
            numbers: gives what it comes to; not called where nobody compares.

        Raises:
            WrongState: rank 0 has decided something else; names both.
            TierDown: a rank has gone.
            DeadlinePassed: a rank is late.
        """

    @abstractmethod
    def end_reads(self) -> None:
        """Rank 0 waits until each other rank has come here; these wait for nobody.

        Call it when this rank's device has read all that it was asked to read.

        Raises:
            WrongState, TierDown, DeadlinePassed: see `compare`.
        """

    @abstractmethod
    def leave(self) -> None:
        """Compares no more; a second call does nothing."""

    def _refuse_if_broken(self) -> None:
        if self._broken is not None:
            raise type(self._broken)(str(self._broken))

    def _break(self, error: HisparseError) -> NoReturn:
        self._broken = error
        raise type(error)(str(error))


class SolePool(PoolShare):
    """A pool of one rank: there is nobody to compare with."""

    writes = True

    def compare(self, what: str, numbers: Numbers) -> None:
        """Nobody decides anything else."""

    def end_reads(self) -> None:
        """Nobody else reads."""

    def leave(self) -> None:
        """Nobody is left."""


class PoolWriter(PoolShare):
    """Rank 0's: it tells what it decides, and waits only for a rank that is far behind."""

    writes = True

    def __init__(self, place: RankPlace, links: Mapping[int, Link]) -> None:
        """Takes charge of `links`, by rank."""
        super().__init__()
        self._seconds, self._links = place.deadline_seconds, dict(links)

    def compare(self, what: str, numbers: Numbers) -> None:
        """See `PoolShare`; a rank that has decided otherwise shows with a later decision."""
        self._refuse_if_broken()
        self.number += 1
        body = PoolDecision(self.number, what, list(numbers())).encoded()
        until = time.monotonic() + self._seconds
        for rank, link in self._links.items():
            with self._named(rank, link, f"take decision {self.number}"):
                link.send(body, until)

    def end_reads(self) -> None:
        """See `PoolShare`."""
        self._refuse_if_broken()
        until = time.monotonic() + self._seconds
        for rank, link in self._links.items():
            with self._named(rank, link, f"end its reads after decision {self.number}"):
                found = link.receive(until)
            if found != (needed := _reads_of(self.number)):
                told = f"rank {rank} tells: {found.decode()}; needed: {needed.decode()}"
                self._break(WrongState(told))

    def leave(self) -> None:
        """See `PoolShare`."""
        for link in self._links.values():
            link.close()
        self._broken = self._broken or WrongState("rank 0 has left its host pool")

    @contextmanager
    def _named(self, rank: int, link: Link, what: str) -> Iterator[None]:
        """Gives errors of a link the name of its rank."""
        try:
            yield
        except TimeoutError:
            late = f"rank {rank} did not {what} in {self._seconds:g} s"
            self._break(DeadlinePassed(late))
        except ConnectionError as error:
            self._break(self._gone(rank, link, error))

    def _gone(self, rank: int, link: Link, error: ConnectionError) -> TierDown:
        """With its last words, if it had any."""
        words = str(error)
        with suppress(ConnectionError):
            while (body := link.take()) is not None:
                words = body.decode()
        return TierDown(f"rank {rank} has gone, decision {self.number} needs it: {words}")


class PoolReader(PoolShare):
    """Every other rank's: a decision waits for rank 0's."""

    def __init__(self, place: RankPlace, link: Link) -> None:
        """Takes charge of `link`."""
        super().__init__()
        self._place, self._link = place, link

    def compare(self, what: str, numbers: Numbers) -> None:
        """See `PoolShare`."""
        self._refuse_if_broken()
        ours = PoolDecision(self.number + 1, what, list(numbers()))
        theirs = PoolDecision.decoded(self._received(ours))
        self.number += 1
        if ours != theirs:
            message = f"decision {ours.number}: rank {self._place.rank} has a "
            error = WrongState(message + ours.difference(theirs))
            self._say(str(error).encode())
            self._link.close()
            self._break(error)

    def end_reads(self) -> None:
        """See `PoolShare`."""
        self._refuse_if_broken()
        self._say(_reads_of(self.number))

    def leave(self) -> None:
        """See `PoolShare`."""
        self._link.close()
        self._broken = self._broken or WrongState(f"rank {self._place.rank} has left its host pool")

    def _received(self, ours: PoolDecision) -> bytes:
        seconds = self._place.deadline_seconds
        needed = f"decision {ours.number}, a {ours.what}"
        try:
            return self._link.receive(time.monotonic() + seconds)
        except TimeoutError:
            self._break(DeadlinePassed(f"rank 0 did not come to {needed}, in {seconds:g} s"))
        except ConnectionError as error:
            self._break(TierDown(f"rank 0 has gone, {needed} needs it: {error}"))

    def _say(self, body: bytes) -> None:
        with suppress(ConnectionError, TimeoutError):  # then the next decision says so
            self._link.send(body, time.monotonic() + _FAREWELL_SECONDS)


def lead_pool(place: RankPlace, shape: GroupShape, region: HostRegion) -> PoolWriter:
    """Waits until every other rank has joined, and hands the region out.

    Raises:
        DeadlinePassed, InvalidArgument, TierDown, WrongState: see `gather`.
    """
    return PoolWriter(place, gather(place, shape, region, b""))


def join_pool(place: RankPlace, shape: GroupShape) -> tuple[PoolReader, HostRegion]:
    """Waits until every rank has joined; the region is rank 0's.

    Raises:
        DeadlinePassed, RegionError, TierDown: see `join`.
    """
    link, region, _ = join(place, shape)
    return PoolReader(place, link), region


def _reads_of(number: int) -> bytes:
    return f"its reads after decision {number} have ended".encode()
