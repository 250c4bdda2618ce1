"""Turns at what waits for lower tiers: nobody's crowd fills the threads that all share."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class FairShare:
    """Lets a party have so many calls under way; its others wait, first come, first served."""

    def __init__(self, calls_each: int) -> None:
        self._calls_each = calls_each
        self._parties: dict[Hashable, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def turn(self, party: Hashable) -> AsyncIterator[None]:
        """A turn of `party`, which lasts as long as the block."""
        free = asyncio.Semaphore(self._calls_each)
        free, num_calls = self._parties.get(party, (free, 0))
        self._parties[party] = free, num_calls + 1
        try:
            async with free:
                yield
        finally:
            self._leave(party)

    @property
    def num_parties(self) -> int:
        """Parties with calls that run or wait."""
        return len(self._parties)

    def _leave(self, party: Hashable) -> None:
        free, num_calls = self._parties.pop(party)
        if num_calls > 1:
            self._parties[party] = free, num_calls - 1
