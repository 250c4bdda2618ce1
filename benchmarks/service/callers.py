"""Clients that make calls side by side in one event loop, and how long each call took."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import grpc.aio

from hisparse_sidecar._proto.hisparse.v1 import sequence_pb2, sequence_pb2_grpc
from hisparse_sidecar.client.side_connection import SideConnection
from hisparse_sidecar.wire.names import CLIENT_KEY
from hisparse_sidecar.wire.retry_info import decode_retry_info

PAGE_TOKENS = 64
_Answer = TypeVar("_Answer")
_Opening: TypeAlias = Awaitable[sequence_pb2.OpenSequenceResponse]
_CALL_SECONDS = 60.0  # a call that takes longer hangs


@dataclass
class Calls:
    """What came of the calls of one kind.

    Attributes:
        seconds: of those that were answered.
        refused_seconds: of those that found no room.
        without_retry: refusals that did not say when to try again.
        failed: other errors.
    """

    seconds: list[float] = field(default_factory=list)
    refused_seconds: list[float] = field(default_factory=list)
    without_retry: int = 0
    failed: list[str] = field(default_factory=list)

    async def make(self, call: Awaitable[_Answer], began: float | None = None) -> _Answer | None:
        """The answer; None of a call that was refused or has failed."""
        began = time.perf_counter() if began is None else began
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            took = time.perf_counter() - began
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                self.failed.append(f"{error.code().name}: {error.details()}")
                return None
            self.refused_seconds.append(took)
            self.without_retry += decode_retry_info(told_by(error).items()) is None
            return None
        self.seconds.append(time.perf_counter() - began)
        return answer


class Caller:
    """One client; what it opens ends with it."""

    def __init__(self, socket_path: Path) -> None:
        self._side = SideConnection(socket_path, _CALL_SECONDS)
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._channel = grpc.aio.insecure_channel(f"unix:{socket_path}", options)
        self._calls = sequence_pb2_grpc.SequenceServiceStub(self._channel)
        self._metadata = ((CLIENT_KEY, self._side.client_token),)

    def open(self, pages: int) -> _Opening:
        """Opens a sequence that may fill so many pages."""
        message = sequence_pb2.OpenSequenceRequest(prompt_tokens=pages * PAGE_TOKENS)
        return self._calls.OpenSequence(message, timeout=_CALL_SECONDS, metadata=self._metadata)

    def open_prompt(self, token_ids: list[int], tenant: str = "") -> _Opening:
        """Opens a prompt on what is found of it."""
        message = sequence_pb2.OpenSequenceRequest(token_ids=token_ids, tenant=tenant)
        return self._calls.OpenSequence(message, timeout=_CALL_SECONDS, metadata=self._metadata)

    def close_sequence(self, sequence: int) -> Awaitable[object]:
        """Closes one of its own."""
        message = sequence_pb2.CloseSequenceRequest(sequence_id=sequence)
        return self._calls.CloseSequence(message, timeout=_CALL_SECONDS, metadata=self._metadata)

    async def close(self) -> None:
        """Ends the client."""
        self._side.close()
        await self._channel.close(None)


def told_by(error: grpc.aio.AioRpcError) -> dict[str, str | bytes]:
    """What the server says of an error beside its text."""
    metadata: Any = error.trailing_metadata() or ()
    return dict(metadata)


async def with_callers(
    socket_path: Path, count: int, work: Callable[[list[Caller]], Awaitable[object]]
) -> None:
    """Runs `work` with so many clients, then ends them."""
    callers = [Caller(socket_path) for _ in range(count)]
    try:
        await work(callers)
    finally:
        for caller in callers:
            with suppress(OSError):
                await caller.close()


async def pace(
    per_second: float, seconds: float, call: Callable[[int, float], Awaitable[object]]
) -> None:
    """Begins calls at a fixed rate, whatever became of those before.

    Args:
        per_second: calls.
        seconds: for how long.
        call: given its number and when it was due, of `time.perf_counter`: what it waited for
            those before counts.
    """
    began, running = time.perf_counter(), set()
    for number in range(int(per_second * seconds)):
        due = began + number / per_second
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.ensure_future(call(number, due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
