"""Turns of parties at what all share."""

import asyncio

import pytest

from hisparse_sidecar.server.fair_share import FairShare


def test_a_crowd_of_one_party_waits_for_itself_alone() -> None:
    asyncio.run(_crowd())


async def _crowd() -> None:
    shares, end, ran = FairShare(2), asyncio.Event(), []

    async def call(party: str, number: int) -> None:
        async with shares.turn(party):
            ran.append((party, number))
            await end.wait()

    crowd = [asyncio.ensure_future(call("a", number)) for number in range(5)]
    await _settle()
    other = asyncio.ensure_future(call("b", 0))
    await _settle()
    assert ran == [("a", 0), ("a", 1), ("b", 0)]
    crowd[2].cancel()  # who waits may go, and those behind keep their order
    end.set()
    await asyncio.gather(other, *crowd, return_exceptions=True)
    assert ran[3:] == [("a", 3), ("a", 4)]
    assert shares.num_parties == 0


def test_a_call_that_fails_gives_its_turn_back() -> None:
    asyncio.run(_failure())


async def _failure() -> None:
    shares = FairShare(1)
    for _ in range(3):
        with pytest.raises(OSError, match="no disk"):
            async with shares.turn("a"):
                raise OSError("no disk")
    assert shares.num_parties == 0


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)
