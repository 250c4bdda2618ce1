"""Turns of refusals, by a clock that stands still unless it is told."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from hisparse_sidecar.server.refusal_pace import Pace, RefusalPace

PACE = Pace(per_second=2.0, max_seconds=8.0, at_once=2, max_calls=4, max_bytes=100)
STEPS = 10  # of the event loop, after which nothing is left to do


class Timer:
    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when, self.callback = when, callback

    def cancel(self) -> None:
        self.when = float("inf")


class Clock:
    """Calls what is due while it is moved."""

    def __init__(self) -> None:
        self.now = 100.0
        self._timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        self._timers.append(Timer(when, callback))
        return cast(asyncio.TimerHandle, self._timers[-1])

    async def move(self, seconds: float) -> None:
        self.now += seconds
        for timer in sorted(self._timers, key=lambda one: one.when):
            if timer.when <= self.now:
                timer.cancel()
                timer.callback()
        await settle()


async def settle() -> None:
    for _ in range(STEPS):
        await asyncio.sleep(0)


class Refusals:
    """Refusals at a pace, and whose were answered, in their order."""

    def __init__(self, pace: Pace = PACE) -> None:
        self.clock = Clock()
        self.pace = RefusalPace(pace, self.clock)
        self.answered: list[str] = []

    def refuse(
        self, name: str, num_bytes: int = 1, seconds_left: float | None = None
    ) -> "asyncio.Task[None]":
        async def wait() -> None:
            await self.pace.wait(name[0], num_bytes, seconds_left)
            self.answered.append(name)

        return asyncio.ensure_future(wait())

    async def crowd(self, *names: str) -> "list[asyncio.Task[None]]":
        tasks = [self.refuse(name) for name in names]
        await settle()
        return tasks


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20.0))


def test_some_are_answered_at_once_and_the_others_one_after_the_other() -> None:
    async def crowd() -> None:
        refusals = Refusals()
        await refusals.crowd("a0", "a1", "a2", "a3", "a4")
        assert (refusals.answered, refusals.pace.num_waiting) == (["a0", "a1"], 3)
        for answered in (2, 2, 3, 3, 4, 4):
            assert len(refusals.answered) == answered
            await refusals.clock.move(0.25)
        assert refusals.answered == ["a0", "a1", "a2", "a3", "a4"]
        assert refusals.pace.num_waiting == 0

    run(crowd)


def test_a_crowd_of_one_party_waits_for_itself_alone() -> None:
    async def crowd() -> None:
        refusals = Refusals()
        await refusals.crowd("a0", "a1", "a2", "a3", "b0", "b1", "b2")
        assert refusals.answered == ["a0", "a1", "b0", "b1"]
        await refusals.clock.move(0.5)
        assert sorted(refusals.answered[4:]) == ["a2", "b2"]

    run(crowd)


def test_who_paused_is_answered_at_once_again_and_who_is_gone_is_forgotten() -> None:
    async def pauses() -> None:
        refusals = Refusals()
        await refusals.crowd("a0", "a1", "b0")
        assert refusals.pace.num_parties == 2
        await refusals.clock.move(0.5)
        await refusals.crowd("a2", "a3")
        assert refusals.answered == ["a0", "a1", "b0", "a2"]
        await refusals.clock.move(2.0)
        await refusals.crowd("c0")
        assert refusals.pace.num_parties == 1

    run(pauses)


def test_no_more_than_so_many_calls_wait() -> None:
    async def crowd() -> None:
        refusals = Refusals()
        await refusals.crowd(*(f"a{number}" for number in range(6)))
        assert refusals.pace.num_waiting == 4
        await refusals.crowd("a6", "a7")  # no room to wait: at once
        assert refusals.answered == ["a0", "a1", "a6", "a7"]
        await refusals.clock.move(0.5)
        await refusals.crowd("a8")
        assert refusals.answered == ["a0", "a1", "a6", "a7", "a2"]

    run(crowd)


def test_no_more_than_so_many_bytes_wait() -> None:
    async def crowd() -> None:
        refusals = Refusals()
        await refusals.crowd("a0", "a1")
        for name, num_bytes in (("a2", 60), ("a3", 41), ("a4", 40)):
            refusals.refuse(name, num_bytes)
        await settle()
        assert refusals.answered == ["a0", "a1", "a3"]
        await refusals.clock.move(0.5)
        refusals.refuse("a5", 60)
        await settle()
        assert refusals.answered == ["a0", "a1", "a3", "a2"]

    run(crowd)


def test_an_answer_comes_long_before_the_deadline_of_its_call() -> None:
    async def crowd() -> None:
        refusals = Refusals()
        await refusals.crowd("a0", "a1", "a2", "a3")
        refusals.refuse("a4", seconds_left=1.0)
        refusals.refuse("a5", seconds_left=0.0)
        await settle()
        assert refusals.answered == ["a0", "a1", "a5"]
        await refusals.clock.move(0.5)
        assert refusals.answered == ["a0", "a1", "a5", "a2", "a4"]

    run(crowd)


def test_no_answer_waits_longer_than_the_limit() -> None:
    async def crowd() -> None:
        refusals = Refusals(Pace(per_second=2.0, max_seconds=0.75, at_once=1))
        await refusals.crowd("a0", "a1", "a2", "a3", "a4")
        await refusals.clock.move(0.5)
        assert refusals.answered == ["a0", "a1"]
        await refusals.clock.move(0.25)
        assert refusals.answered == ["a0", "a1", "a2", "a3", "a4"]

    run(crowd)


def test_the_turn_of_who_has_gone_is_for_the_next() -> None:
    async def crowd() -> None:
        refusals = Refusals()
        _, _, gone = await refusals.crowd("a0", "a1", "a2")
        gone.cancel()
        await settle()
        assert refusals.pace.num_waiting == 0
        await refusals.crowd("a3")
        await refusals.clock.move(0.5)
        assert refusals.answered == ["a0", "a1", "a3"]

    run(crowd)


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_who_goes_when_all_are_answered_hurts_nobody(seconds: float) -> None:
    async def crowd() -> None:
        refusals = Refusals()
        _, _, gone, _ = await refusals.crowd("a0", "a1", "a2", "a3")
        gone.cancel()
        refusals.clock.now += seconds
        refusals.pace.end()
        await settle()
        assert refusals.answered == ["a0", "a1", "a3"]

    run(crowd)


def test_the_end_answers_all_that_wait_and_all_that_come() -> None:
    async def crowd() -> None:
        refusals = Refusals()
        await refusals.crowd("a0", "a1", "a2", "a3", "a4")
        refusals.pace.end()
        await settle()
        assert refusals.answered == ["a0", "a1", "a2", "a3", "a4"]
        await refusals.crowd("a5")
        assert refusals.answered[-1] == "a5"
        assert refusals.pace.num_waiting == 0

    run(crowd)
