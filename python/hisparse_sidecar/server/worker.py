"""The one thread that touches the sidecar: calls run in it one after the other."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Result = TypeVar("_Result")
_LOG = logging.getLogger(__name__)


class Worker:
    """Lets the event loop wait for work that would block it."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hisparse-sidecar")

    async def run(
        self,
        call: Callable[[], _Result],
        *,
        undo: Callable[[_Result], object] | None = None,
    ) -> _Result:
        """The result of `call`, made in the worker thread.

        Args:
            call: what to run. It cannot be stopped once begun.
            undo: runs next with the result if the waiting task was cancelled meanwhile.
        """
        future = self._executor.submit(call)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if undo:
                self.submit(lambda: _undo(future, undo))
            raise

    def submit(self, call: Callable[[], object]) -> None:
        """Runs `call` without waiting for it; a failure of it is logged."""
        self._executor.submit(call).add_done_callback(_log_failure)

    def close(self) -> None:
        """Waits for what was submitted, then ends the thread."""
        self._executor.shutdown(wait=True)


def _undo(future: "Future[_Result]", undo: Callable[[_Result], object]) -> None:
    # runs after the call, in the same thread: the future is done or was never begun
    if not future.cancelled() and future.exception() is None:
        undo(future.result())


def _log_failure(future: "Future[object]") -> None:
    error = None if future.cancelled() else future.exception()
    if error is not None:
        _LOG.error("cleaning up after a client failed", exc_info=error)
