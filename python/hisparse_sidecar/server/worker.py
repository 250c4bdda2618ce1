"""The thread that touches the sidecar, and those that wait for lower tiers beside it."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Result = TypeVar("_Result")
_LOG = logging.getLogger(__name__)


class Worker:
    """Lets the event loop wait for work that would block it.

    Calls run one after the other, or so many side by side.
    """

    def __init__(self, name: str = "hisparse-sidecar", num_threads: int = 1) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix=name)

    async def run(
        self,
        call: Callable[[], _Result],
        *,
        undo: Callable[[_Result], object] | None = None,
    ) -> _Result:
        """The result of `call`, made in a thread of the worker.

        Args:
            call: what to run. It cannot be stopped once begun.
            undo: runs next with the result if the waiting task was cancelled meanwhile.
        """
        future = self.start(call)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if undo:
                self.submit(lambda: undo_result(future, undo))
            raise

    def start(self, call: Callable[[], _Result]) -> "Future[_Result]":
        """Lets a thread of the worker make `call`."""
        return self._executor.submit(call)

    def submit(self, call: Callable[[], object]) -> None:
        """Runs `call` without waiting for it; a failure of it is logged."""
        self.start(call).add_done_callback(_log_failure)

    def close(self) -> None:
        """Waits for what was submitted, then ends the threads."""
        self._executor.shutdown(wait=True)


def undo_result(future: "Future[_Result]", undo: Callable[[_Result], object]) -> None:
    """Undoes what a call has given, if it gave anything; waits for the call's end."""
    if not future.cancelled() and future.exception() is None:
        undo(future.result())


def _log_failure(future: "Future[object]") -> None:
    error = None if future.cancelled() else future.exception()
    if error is not None:
        _LOG.error("cleaning up after a client failed", exc_info=error)
