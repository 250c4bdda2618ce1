"""How a servicer reaches the sidecar: who calls, in which thread, and whose turn it is."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from hisparse_sidecar.server.clients import Client
from hisparse_sidecar.server.grpc_types import Context
from hisparse_sidecar.server.liveness import Liveness
from hisparse_sidecar.server.shared_sidecar import SharedSidecar, StepTaken
from hisparse_sidecar.server.worker import Worker
from hisparse_sidecar.wire.errors import Draining, Unauthenticated
from hisparse_sidecar.wire.names import CLIENT_KEY

_Result = TypeVar("_Result")


class StepEnds:
    """Wakes those who wait for a step to end; `notify` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Set when the next step ends."""
        return self._next

    def notify(self) -> None:
        """A step has ended."""
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        ended, self._next = self._next, asyncio.Event()
        ended.set()


class Gate:
    """Runs calls on the shared sidecar in the worker thread."""

    def __init__(
        self,
        shared: SharedSidecar,
        worker: Worker,
        step_ends: StepEnds,
        liveness: Liveness,
    ) -> None:
        self.shared = shared
        self.worker = worker
        self.liveness = liveness
        self._step_ends = step_ends
        self.draining = asyncio.Event()
        self.streams_end = asyncio.Event()
        self.closed = asyncio.Event()
        self.num_calls = 0  # that run, or wait for their turn

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Inside, a call runs or waits for its turn: a drain lets it end."""
        self.num_calls += 1
        try:
            yield
        finally:
            self.num_calls -= 1

    async def call(
        self,
        context: Context,
        call: Callable[[Client | None], _Result],
        undo: Callable[[Client | None, _Result], object] | None = None,
    ) -> _Result:
        """`call(caller)`, once no step of another client is in its way.

        Args:
            context: of the gRPC call; the caller is None if it is connectionless.
            call: what to run in the worker thread.
            undo: given the result instead of the caller, if the gRPC call was cancelled meanwhile.
        """
        token = client_token(context)

        def make() -> _Result:
            return call(self.shared.clients.find(token))

        def unmake(result: _Result) -> None:
            if undo:
                with suppress(Unauthenticated):  # the client is gone, and what it owned
                    undo(self.shared.clients.find(token), result)

        with self.liveness.calling(token):
            return await self._in_turn(make, unmake)

    async def client_call(
        self,
        context: Context,
        call: Callable[[Client], _Result],
        undo: Callable[[Client, _Result], object] | None = None,
    ) -> _Result:
        """As `call`, refused unless a client calls."""
        token = client_token(context)

        def make() -> _Result:
            return call(self.shared.clients.require(token))

        def unmake(result: _Result) -> None:
            if undo:
                with suppress(Unauthenticated):
                    undo(self.shared.clients.require(token), result)

        with self.liveness.calling(token):
            return await self._in_turn(make, unmake)

    async def step_call(self, context: Context, call: Callable[[Client], _Result]) -> _Result:
        """As `client_call`, for a call within a step: cancelling it aborts the step."""
        try:
            return await self.client_call(context, call)
        except asyncio.CancelledError:
            self.abort_step(context)
            raise

    def abort_step(self, context: Context) -> None:
        """Aborts the open step of the calling client, if there is one, after what runs now."""
        token = client_token(context)

        def abort() -> None:
            with suppress(Unauthenticated):
                self.shared.abort_any_step(self.shared.clients.require(token))

        self.worker.submit(abort)

    async def snapshot(self, context: Context, call: Callable[[], _Result]) -> _Result:
        """`call()`, for any caller and whatever step is open."""
        with self.liveness.calling(client_token(context)):
            return await self.worker.run(call)

    def refuse_if_draining(self) -> None:
        """Raises Draining once the server is to end: nothing new begins."""
        if self.draining.is_set():
            raise Draining("the server is draining: it takes 0 new sequences and steps")

    async def unless_streams_end(self, request: Awaitable[_Result]) -> _Result:
        """The next request of a stream.

        Raises:
            Draining: the server ends its streams; none was waiting.
        """
        reading = asyncio.ensure_future(request)
        ending = asyncio.ensure_future(self.streams_end.wait())
        try:
            await asyncio.wait((reading, ending), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            raise Draining("the server is draining: 0 steps are open, the stream ends")
        finally:
            reading.cancel()
            ending.cancel()

    async def _in_turn(
        self, make: Callable[[], _Result], unmake: Callable[[_Result], object]
    ) -> _Result:
        if self.closed.is_set():
            raise Draining("the server is draining: 0 sequences and regions are left")
        with self.counting():
            while True:
                ended = self._step_ends.next()
                try:
                    return await self.worker.run(make, undo=unmake)
                except StepTaken:
                    await ended.wait()


def client_token(context: Context) -> str | None:
    """What the call says about its client."""
    for key, value in context.invocation_metadata() or ():
        if key == CLIENT_KEY:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return None
