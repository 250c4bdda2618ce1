"""The remote tier on Mooncake Store: put, get, holds and remove by identity, all verified.

The store promises little: it may drop a page at any time, call one there that cannot be read, keep
an old value under a new put, or not answer for half a minute. Here a page is right or a miss.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import (
    DeadlinePassed,
    InvalidArgument,
    TierDown,
    TierFull,
    WrongState,
)
from hisparse_sidecar.remote.breaker import Admission, Breaker, BreakerState
from hisparse_sidecar.remote.frame import FRAME_BYTES, IDENTITY_BYTES, open_frame, write_frame
from hisparse_sidecar.remote.lanes import Lane, Lanes
from hisparse_sidecar.remote.object_store import (
    ABOUT_THE_KEY,
    FULL,
    LONGEST_CALL_SECONDS,
    STALL_SECONDS,
    UNREADABLE,
    WRONG_LENGTH,
    MooncakeOptions,
    ObjectStore,
    failure,
    open_store,
)

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.005, 0.2
_LEAST_CALL_SECONDS = 0.1  # with less left, a try would fail by its deadline, not by the store
_CLOSE_SECONDS = 5.0
_TIER = "remote tier"

WritableBytes: TypeAlias = bytearray | memoryview
Bytes: TypeAlias = bytes | WritableBytes


@dataclass(frozen=True)
class RemoteUsage:
    """What a tier has done since it was made."""

    puts: int = 0
    hits: int = 0
    misses: int = 0
    corrupt: int = 0  # misses whose bytes were not those that had been put
    unreadable: int = 0  # misses that the store lists, but whose owner does not answer
    full: int = 0  # answers of a full store; each is waited out and tried again
    failures: int = 0  # calls that raised TierDown or DeadlinePassed


class _Call:
    """Leave from the breaker, and a lane; gives the lane back unless the call is left in it."""

    __slots__ = ("_lanes", "admission", "deadline", "is_left", "lane", "name")

    def __init__(
        self, name: str, deadline: float, admission: Admission, lanes: Lanes, lane: Lane
    ) -> None:
        self.name, self.deadline, self.admission, self.lane = name, deadline, admission, lane
        self.is_left = False  # at the deadline, with the call still under way
        self._lanes = lanes

    def __enter__(self) -> "_Call":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.is_left:
            self._lanes.give_back(self.lane)


class MooncakeTier:
    """Pages by identity in a store. Safe to use from several threads; `close` ends it.

    Every call takes `deadline_seconds`, counted from the call, and raises `DeadlinePassed` once
    they are over, or `TierDown` if the store fails or is being spared.
    """

    def __init__(self, store: ObjectStore, options: MooncakeOptions) -> None:
        self._store = store
        self._options = options
        self._breaker = Breaker(_TIER, options.breaker)
        self._lanes = Lanes(options.num_lanes, FRAME_BYTES + options.max_page_bytes)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._is_closed = False
        for lane in self._lanes.all:
            code = store.register_buffer(lane.address, lane.memory.nbytes)
            if code < 0:
                self._lanes.end_all(0)
                raise TierDown(failure("register_buffer", code))

    @property
    def state(self) -> BreakerState:
        """Whether the store answers; anything but closed is a degraded service."""
        return self._breaker.state

    @property
    def usage(self) -> RemoteUsage:
        """What was done so far."""
        with self._lock:
            return RemoteUsage(**self._counts)

    def put(
        self, identity: bytes, page: Bytes, *, num_tokens: int, deadline_seconds: float
    ) -> None:
        """Stores a page, if the store has none of this identity: whether it had, it does not say.

        A full store evicts behind the caller's back: the put pauses and tries again. `page` is the
        caller's again even where a call is left at its deadline, which may then store it late.

        Raises:
            TierFull: the store was full until too little time was left for another try.
        """
        page = memoryview(page).cast("B")
        self._check(identity, page.nbytes)
        if not 1 <= num_tokens <= PAGE_TOKENS:
            raise InvalidArgument(f"num_tokens: found {num_tokens}, needed 1 to {PAGE_TOKENS}")
        with self._begin("put", deadline_seconds) as call:
            frame = call.lane.memory[: FRAME_BYTES + page.nbytes]
            write_frame(frame, identity, page, num_tokens)
            key, address, num_bytes = self._key(identity), call.lane.address, frame.nbytes
            store = partial(self._store.put_from, key, address, num_bytes)
            self._put_frame(call, store, num_bytes)
            self._count("puts")

    def get(self, identity: bytes, into: WritableBytes, *, deadline_seconds: float) -> bool:
        """Copies a page to `into`, which is as long as the page; False if there is no sound copy.

        `into` is written only where the answer is True.
        """
        into = memoryview(into).cast("B")
        with self.read(identity, into.nbytes, deadline_seconds=deadline_seconds) as page:
            if page is None:
                return False
            into[:] = page
            return True

    @contextmanager
    def read(
        self, identity: bytes, num_bytes: int, *, deadline_seconds: float
    ) -> Iterator[memoryview | None]:
        """The page's bytes where the store put them, for as long as the `with` lasts; None = miss.

        It holds one of the tier's lanes until then.
        """
        self._check(identity, num_bytes)
        with self._begin("get", deadline_seconds) as call:
            page = self._fetch(call, identity, num_bytes)
            self._count("misses" if page is None else "hits")
            yield page

    def holds(self, identity: bytes, *, deadline_seconds: float) -> bool:
        """Whether the store lists the page: a hint, for it may be lost or unreadable."""
        self._check(identity, 0)
        with self._begin("holds", deadline_seconds) as call:
            return self._run(call, partial(self._store.is_exist, self._key(identity))) == 1

    def remove(self, identity: bytes, *, deadline_seconds: float) -> bool:
        """Forgets a page, even one that is being read: its reader finds the checksum wrong."""
        self._check(identity, 0)
        with self._begin("remove", deadline_seconds) as call:
            return self._remove(call, identity) not in ABOUT_THE_KEY

    def close(self) -> None:
        """Leaves the store; calls that hang are waited for a few seconds, then left behind."""
        if not self._is_closed and self._lanes.end_all(_CLOSE_SECONDS):
            self._store.close()  # not while a call hangs in it
        self._is_closed = True

    def __enter__(self) -> "MooncakeTier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, name: str, seconds: float) -> _Call:
        """Leave from the breaker, and a lane."""
        if self._is_closed:
            raise WrongState(f"{_TIER}: found closed, needed open")
        now = time.monotonic()
        admission = self._breaker.admit(now)
        try:
            lane = self._lanes.take(name, now + seconds)
        except DeadlinePassed:
            self._failed(admission)
            raise
        return _Call(name, now + seconds, admission, self._lanes, lane)

    def _run(self, call: _Call, work: Callable[[], int], *answers: int) -> int:
        """Makes one call of the store; negative codes are failures but for `answers`."""
        start = time.monotonic()
        try:
            code = self._answer(call, work, call.deadline - start)
            if code < 0 and code not in answers and code not in ABOUT_THE_KEY:
                raise TierDown(failure(call.name, code))
        except (DeadlinePassed, TierDown):
            self._failed(call.admission)
            raise
        if code == UNREADABLE and time.monotonic() - start >= STALL_SECONDS:
            self._failed(call.admission)  # a miss, but not one to wait for again and again
        else:
            self._breaker.succeeded(call.admission)
        return code

    @staticmethod
    def _answer(call: _Call, work: Callable[[], int], seconds: float) -> int:
        """Makes the call here if the client ends it in time by itself, else where it can be left.

        Handing a call to another thread and back takes as long as the store takes for 32 KiB.
        """
        if seconds >= LONGEST_CALL_SECONDS:
            return work()
        code = call.lane.run(call.deadline, work)
        if code is None:
            call.is_left = True
            raise DeadlinePassed(f"{call.name}: deadline passed")
        return code

    def _failed(self, admission: Admission) -> None:
        self._count("failures")
        self._breaker.failed(admission, time.monotonic())

    def _put_frame(self, call: _Call, work: Callable[[], int], num_bytes: int) -> None:
        for attempt in itertools.count():
            if self._run(call, work, FULL) != FULL:
                return
            self._count("full")
            left = call.deadline - time.monotonic()
            pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(attempt, 10), _LONGEST_PAUSE_SECONDS)
            if left < pause + _LEAST_CALL_SECONDS:
                need = f"need {num_bytes} bytes"
                raise TierFull(f"{_TIER} full: {need}, no room in {attempt + 1} tries")
            time.sleep(pause)

    def _fetch(self, call: _Call, identity: bytes, num_bytes: int) -> memoryview | None:
        frame, key = call.lane.memory[: FRAME_BYTES + num_bytes], self._key(identity)
        frame[:FRAME_BYTES] = bytes(FRAME_BYTES)  # no page of an earlier call may pass for this one
        address, length = call.lane.address, frame.nbytes
        read = partial(self._store.get_into, key, address, length)
        code = self._run(call, read, WRONG_LENGTH, UNREADABLE)
        if code == UNREADABLE:
            self._count("unreadable")
        if code == UNREADABLE or code in ABOUT_THE_KEY:
            return None
        page = open_frame(frame, identity, num_bytes) if code == length else None
        if page is None:
            self._drop_corrupt(call, identity)
        return page

    def _drop_corrupt(self, call: _Call, identity: bytes) -> None:
        """While the wrong bytes stay, a put of the right ones would change nothing."""
        self._count("corrupt")
        with suppress(DeadlinePassed, TierDown):  # counted; the page is a miss either way
            self._remove(call, identity)

    def _remove(self, call: _Call, identity: bytes) -> int:
        return self._run(call, partial(self._store.remove, self._key(identity), True))

    def _key(self, identity: bytes) -> str:
        return self._options.key_prefix + identity.hex()

    def _check(self, identity: bytes, num_bytes: int) -> None:
        if len(identity) != IDENTITY_BYTES:
            raise InvalidArgument(f"identity: found {len(identity)} bytes, needed {IDENTITY_BYTES}")
        most = self._options.max_page_bytes
        if num_bytes > most:
            raise InvalidArgument(f"page: found {num_bytes} bytes, needed 0 to {most}")

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1


def connect(options: MooncakeOptions) -> MooncakeTier:
    """A tier on a running store.

    Raises:
        TierDown: the master does not answer.
        InvalidArgument: the wheel of the store is not installed, or a library that it needs.
    """
    return MooncakeTier(open_store(options), options)
