"""Threads that wait for lower tiers, in turns: nobody's crowd fills what all share."""

import asyncio
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import TypeVar

from hisparse_sidecar.server.worker import Worker, undo_result

_Result = TypeVar("_Result")


class FairShare:
    """Lets a party have so many calls under way; its others wait, first come, first served."""

    def __init__(self, worker: Worker, calls_each: int) -> None:
        """Shares the threads of `worker`.

        Args:
            worker: makes the calls.
            calls_each: of a party at a time.
        """
        self._worker, self._calls_each = worker, calls_each
        self._parties: dict[Hashable, tuple[asyncio.Semaphore, int]] = {}

    @property
    def num_parties(self) -> int:
        """Parties with calls that run or wait."""
        return len(self._parties)

    async def run(
        self, party: Hashable, call: Callable[[], _Result], undo: Callable[[_Result], object]
    ) -> _Result:
        """The result of `call`, made in a thread of the worker when it is the party's turn.

        Args:
            party: whose turn it takes, until the call has ended, whoever still waits for it.
            call: what to run. It cannot be stopped once begun.
            undo: runs in the worker with the result if the waiting task was cancelled meanwhile.
        """
        free = self._enter(party)
        try:
            await free.acquire()
        except BaseException:
            self._leave(party)
            raise
        future, loop = self._worker.start(call), asyncio.get_running_loop()

        def end(_: object) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._end, party, free)

        future.add_done_callback(end)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(
                lambda done: self._worker.submit(lambda: undo_result(done, undo))
            )
            raise

    def _enter(self, party: Hashable) -> asyncio.Semaphore:
        free, num_calls = self._parties.get(party, (asyncio.Semaphore(self._calls_each), 0))
        self._parties[party] = free, num_calls + 1
        return free

    def _end(self, party: Hashable, free: asyncio.Semaphore) -> None:
        free.release()
        self._leave(party)

    def _leave(self, party: Hashable) -> None:
        free, num_calls = self._parties.pop(party)
        if num_calls > 1:
            self._parties[party] = free, num_calls - 1
