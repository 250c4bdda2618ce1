"""Turns of parties at threads that all share."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from hisparse_sidecar.server.fair_share import FairShare
from hisparse_sidecar.server.worker import Worker

_SECONDS = 30.0  # in which what must happen has happened


class Calls:
    """Calls that wait for each other in threads, and which of them have begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.undone: list[str] = []
        self.end = threading.Event()
        self._changed = threading.Condition()

    def make(self, name: str) -> str:
        with self._changed:
            self.begun.append(name)
            self._changed.notify_all()
        assert self.end.wait(_SECONDS)
        return name

    def wait_for(self, *names: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: set(names) <= set(self.begun), _SECONDS)

    def run(self, shares: FairShare, name: str) -> "asyncio.Task[str]":
        call = shares.run(name[0], lambda: self.make(name), self.undone.append)
        return asyncio.ensure_future(call)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("test", 8)
    yield made
    made.close()


def test_a_crowd_of_one_party_waits_for_itself_alone(worker: Worker) -> None:
    asyncio.run(_crowd(worker))


async def _crowd(worker: Worker) -> None:
    calls, shares = Calls(), FairShare(worker, 2)
    crowd = [calls.run(shares, f"a{number}") for number in range(5)]
    other = calls.run(shares, "b0")
    await asyncio.sleep(0)
    await asyncio.to_thread(calls.wait_for, "a0", "a1", "b0")
    assert sorted(calls.begun) == ["a0", "a1", "b0"]
    crowd[2].cancel()  # who waits may go, and those behind keep their order
    calls.end.set()
    found = await asyncio.gather(other, *crowd, return_exceptions=True)
    assert found[:3] == ["b0", "a0", "a1"]
    assert isinstance(found[3], asyncio.CancelledError)
    assert found[4:] == ["a3", "a4"]
    assert "a2" not in calls.begun
    await _until_nobody_is_left(shares)


def test_a_call_that_nobody_waits_for_any_more_keeps_its_turn_and_is_undone(
    worker: Worker,
) -> None:
    asyncio.run(_left_alone(worker))


async def _left_alone(worker: Worker) -> None:
    calls, shares = Calls(), FairShare(worker, 1)
    left = calls.run(shares, "a0")
    await asyncio.sleep(0)
    await asyncio.to_thread(calls.wait_for, "a0")
    left.cancel()
    next_one = calls.run(shares, "a1")
    for _ in range(20):
        await asyncio.sleep(0)
    assert calls.begun == ["a0"]
    calls.end.set()
    assert await next_one == "a1"
    await _until_nobody_is_left(shares)
    await asyncio.to_thread(worker.close)  # waits for the undoing
    assert calls.undone == ["a0"]


def test_a_call_that_fails_gives_its_turn_back(worker: Worker) -> None:
    asyncio.run(_failure(worker))


async def _failure(worker: Worker) -> None:
    shares = FairShare(worker, 1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await shares.run("a", lambda: 1 // 0, lambda _: None)
    await _until_nobody_is_left(shares)


async def _until_nobody_is_left(shares: FairShare) -> None:
    end = asyncio.get_running_loop().time() + _SECONDS
    while shares.num_parties:
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0)
