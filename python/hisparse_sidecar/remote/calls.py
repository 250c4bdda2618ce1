"""Calls of a store: let through by a breaker, each with a lane, ended by a deadline, counted.

A call with time enough is made by its caller, for the client ends it by itself; one with less is
handed to the lane's thread, where it can be left.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeAlias

from hisparse_sidecar._core import DeadlinePassed, InvalidArgument, TierDown, WrongState
from hisparse_sidecar.remote.breaker import Admission, Breaker, BreakerState
from hisparse_sidecar.remote.frame import FRAME_BYTES
from hisparse_sidecar.remote.lanes import Lane, Lanes
from hisparse_sidecar.remote.object_store import (
    ABOUT_THE_KEY,
    LONGEST_CALL_SECONDS,
    STALL_SECONDS,
    UNREADABLE,
    MooncakeOptions,
    ObjectStore,
    failure,
)
from hisparse_sidecar.remote.pages import check_names

TIER = "remote tier"
_CLOSE_SECONDS = 5.0

Work: TypeAlias = Callable[[], list[int]]  # calls the store; the code of each page


class Call:
    """Leave from the breaker, and a lane; gives the lane back unless the call is left in it."""

    __slots__ = ("_lanes", "admission", "deadline", "is_left", "lane", "name")

    def __init__(
        self, name: str, deadline: float, admission: Admission, lanes: Lanes, lane: Lane
    ) -> None:
        self.name, self.deadline, self.admission, self.lane = name, deadline, admission, lane
        self.is_left = False  # at the deadline, with the call still under way
        self._lanes = lanes

    def __enter__(self) -> "Call":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.is_left:
            self._lanes.give_back(self.lane)


class StoreCalls:
    """Makes the calls of one tier, from several threads; `close` ends it."""

    def __init__(self, store: ObjectStore, options: MooncakeOptions) -> None:
        self._store = store
        self._breaker = Breaker(TIER, options.breaker)
        self.lane_bytes = FRAME_BYTES + options.max_page_bytes
        self._lanes = Lanes(options.num_lanes, self.lane_bytes)
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
        """Of the breaker."""
        return self._breaker.state

    def spare(self) -> None:
        """Makes no call before the next probe is due: the store is known not to answer."""
        self._breaker.open(time.monotonic())

    @property
    def counts(self) -> dict[str, int]:
        """By name, what was counted so far."""
        with self._lock:
            return dict(self._counts)

    def count(self, name: str, number: int = 1) -> None:
        """Adds to a count."""
        with self._lock:
            self._counts[name] += number

    def check_fit(self, identities: Sequence[bytes], num_bytes: int) -> None:
        """Of pages with so many bytes together: their names, and that their frames fit a lane."""
        check_names(identities)
        most = self.lane_bytes - FRAME_BYTES * len(identities)
        if num_bytes > most:
            what = "page" if len(identities) == 1 else f"{len(identities)} pages"
            raise InvalidArgument(f"{what}: found {num_bytes} bytes, needed 0 to {most}")

    def begin(self, name: str, seconds: float) -> Call:
        """Leave from the breaker, and a lane.

        Raises:
            TierDown: the store is spared.
            DeadlinePassed: every lane was in use until then. It counts against the store where all
                of them are left to calls that hang, not where others were faster.
            WrongState: closed.
        """
        if self._is_closed:
            raise WrongState(f"{TIER}: found closed, needed open")
        now = time.monotonic()
        deadline, admission = now + seconds, self._breaker.admit(now)
        try:
            lane = self._lanes.take(name, deadline)
        except DeadlinePassed:
            if self._lanes.all_hang:
                self._came_late(admission, deadline)
            else:
                self.count("failures")
                self._breaker.not_made(admission, time.monotonic())
            raise
        return Call(name, deadline, admission, self._lanes, lane)

    def run(self, call: Call, work: Work, *answers: int) -> list[int]:
        """Calls the store once; negative codes are failures but for `answers`."""
        start = time.monotonic()
        try:
            codes = _answer(call, work, call.deadline - start)
            for code in codes:
                if code < 0 and code not in answers and code not in ABOUT_THE_KEY:
                    raise TierDown(failure(call.name, code))
        except DeadlinePassed:
            self._came_late(call.admission, call.deadline)
            raise
        except TierDown:
            self._failed(call.admission)
            raise
        if UNREADABLE in codes and time.monotonic() - start >= STALL_SECONDS:
            self._failed(call.admission)  # a miss, but not one to wait for again and again
        else:
            self._breaker.succeeded(call.admission)
        return codes

    def give_up(self, call: Call) -> NoReturn:
        """Counts a call that can't be made by its deadline, because an earlier one hangs.

        Raises:
            DeadlinePassed: always.
        """
        self._came_late(call.admission, call.deadline)
        raise DeadlinePassed(f"{call.name}: deadline passed")

    def close(self) -> None:
        """Leaves the store; calls that hang are waited for a few seconds, then left behind."""
        if not self._is_closed and self._lanes.end_all(_CLOSE_SECONDS):
            self._store.close()  # not while a call hangs in it
        self._is_closed = True

    def _came_late(self, admission: Admission, deadline: float) -> None:
        self.count("failures")
        self._breaker.came_late(admission, deadline, time.monotonic())

    def _failed(self, admission: Admission) -> None:
        self.count("failures")
        self._breaker.failed(admission, time.monotonic())


def _answer(call: Call, work: Work, seconds: float) -> list[int]:
    """Calls here where the client ends it in time by itself, else where it can be left.

    Handing a call to another thread and back takes about as long as the store takes for 16 KiB.
    """
    if seconds >= LONGEST_CALL_SECONDS:
        return work()
    codes = call.lane.run(call.deadline, work)
    if codes is None:
        call.is_left = True
        raise DeadlinePassed(f"{call.name}: deadline passed")
    return codes
