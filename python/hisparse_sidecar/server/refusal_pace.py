"""When refusals are answered: who asks again at once waits longer, instead of keeping all busy."""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """What an event loop has of time."""

    def time(self) -> float: ...  # noqa: D102
    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle: ...  # noqa: D102


@dataclass(frozen=True)
class Pace:
    """How refusals of one party are answered, and how many of all may wait.

    Attributes:
        per_second: answers to a party that asks without a pause.
        max_seconds: that an answer waits.
        at_once: answers to a party that did not ask for a while.
        max_calls: that wait.
        max_bytes: of the messages of calls that wait, as sent and decoded.
    """

    per_second: float
    max_seconds: float
    at_once: int = 16
    max_calls: int = 1024
    max_bytes: int = 64 << 20


class RefusalPace:
    """Lets refusals wait for their turn: of each party one after the other. Of the event loop only.

    Where too many wait already, those that come are answered at once: memory is bounded, not time.
    """

    def __init__(self, pace: Pace, clock: Clock | None = None) -> None:
        """Nobody waits yet.

        Args:
            pace: of every party.
            clock: default: the running event loop.
        """
        self._pace = pace
        self._clock: Clock = clock or asyncio.get_running_loop()
        self._ended = False
        self._last_turn: dict[Hashable, float] = {}  # of who was refused lately
        self._waiting: dict[asyncio.Future[None], int] = {}  # bytes of each call, oldest first
        self._waiting_bytes = 0

    @property
    def num_waiting(self) -> int:
        """Calls whose answers wait."""
        return len(self._waiting)

    @property
    def num_bytes(self) -> int:
        """Bytes of their messages."""
        return self._waiting_bytes

    @property
    def num_parties(self) -> int:
        """Parties that were refused lately."""
        return len(self._last_turn)

    async def wait(self, party: Hashable, num_bytes: int, seconds_left: float | None) -> None:
        """Returns when a refusal may be answered.

        Args:
            party: whose call was refused.
            num_bytes: of the call's message, which is kept meanwhile.
            seconds_left: until the call's deadline: it waits for half of them at most. None = it
                has none.
        """
        seconds = self._take_turn(party)
        if seconds_left is not None:
            seconds = min(seconds, seconds_left / 2)
        if seconds <= 0.0 or self._ended or not self._has_room(num_bytes):
            return
        try:
            await self._sleep(seconds, num_bytes)
        except asyncio.CancelledError:
            self._give_turn_back(party)
            raise

    def end(self) -> None:
        """Answers those that wait, and from now on all at once."""
        self._ended = True
        for waiting in list(self._waiting):
            self._wake(waiting)

    async def _sleep(self, seconds: float, num_bytes: int) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_at(self._clock.time() + seconds, lambda: self._wake(waiting))
        self._waiting[waiting] = num_bytes
        self._waiting_bytes += num_bytes
        try:
            await waiting
        finally:
            timer.cancel()
            self._leave(waiting)

    def _wake(self, waiting: "asyncio.Future[None]") -> None:
        self._leave(waiting)
        if not waiting.done():  # cancelled, and its task has not run since
            waiting.set_result(None)

    def _leave(self, waiting: "asyncio.Future[None]") -> None:
        self._waiting_bytes -= self._waiting.pop(waiting, 0)

    def _has_room(self, num_bytes: int) -> bool:
        pace = self._pace
        has_bytes = self._waiting_bytes + num_bytes <= pace.max_bytes
        return has_bytes and len(self._waiting) < pace.max_calls

    def _take_turn(self, party: Hashable) -> float:
        """Seconds until the party's next turn, 0 or less for one that did not ask for a while."""
        now, interval = self._clock.time(), 1.0 / self._pace.per_second
        earliest = now - self._pace.at_once * interval
        self._forget(earliest)
        turn = max(self._last_turn.pop(party, earliest), earliest) + interval
        self._last_turn[party] = turn = min(turn, now + self._pace.max_seconds)
        return turn - now

    def _give_turn_back(self, party: Hashable) -> None:
        if party in self._last_turn:
            self._last_turn[party] -= 1.0 / self._pace.per_second

    def _forget(self, earliest: float) -> None:
        """Drops parties that are as those never refused, of those refused longest ago."""
        while self._last_turn:
            party, turn = next(iter(self._last_turn.items()))
            if turn > earliest:
                return
            del self._last_turn[party]
