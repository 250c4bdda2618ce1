"""Case `slow readers`: a client's calls beside 50 streams that are asked for much, hardly read."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import grpc.aio

from benchmarks.service.callers import Caller, Calls, pace, with_callers
from benchmarks.service.latency import share_rows
from benchmarks.service.server import Server, server_of, service_config
from hisparse_sidecar._proto.hisparse.v1 import step_pb2, step_pb2_grpc, tensor_pb2
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.client.side_connection import SideConnection
from hisparse_sidecar.wire.names import CLIENT_KEY

_READERS, _PER_SECOND, _MOST_SECONDS = 50, 100.0, 20.0  # the server ends them after 30 s
_WINDOW_BYTES = 4 << 10
_OPTIONS = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
)
# of no step: each is answered at once, with a refusal
_REQUEST = step_pb2.RunLayersRequest(
    layer=step_pb2.RunLayerRequest(
        step_id=7,
        inputs=step_pb2.LayerInputRefs(query=tensor_pb2.TensorRef(shape=[1 << 40] * 150)),
    )
)
CASE = f"a client beside {_READERS} streams of which 1 message a second is read"
_PEER = "without them"


def measure(seconds: float) -> Iterator[Measurement]:
    """Calls of a client that is not slow, and what a slow stream may have sent."""
    with server_of(service_config(64, 8)) as server:
        alone = asyncio.run(_calls(server, min(seconds, _MOST_SECONDS)))
        before = server.rss_bytes
        beside, most_sent = asyncio.run(_calls_beside(server, min(seconds, _MOST_SECONDS)))
        grown = server.rss_bytes - before
    yield from share_rows(CASE, "open and close", beside.seconds, alone.seconds, _PEER)
    yield Measurement(CASE, "failed calls", len(beside.failed), "lower")
    sent_kib = most_sent * _REQUEST.ByteSize() / 1024
    yield Measurement(CASE, "KiB that a stream has sent, at most", sent_kib, "lower")
    yield Measurement(CASE, "KiB of RSS a stream", grown / 1024 / _READERS, "lower")


async def _calls(server: Server, seconds: float) -> Calls:
    calls = Calls()

    async def run(callers: list[Caller]) -> None:
        async def open_and_close(_: int, due: float) -> None:
            opened = await calls.make(callers[0].open(1), due)
            if opened is not None:
                await callers[0].close_sequence(opened.sequence_id)

        await pace(_PER_SECOND, seconds, open_and_close)

    await with_callers(server.socket_path, 1, run)
    return calls


async def _calls_beside(server: Server, seconds: float) -> tuple[Calls, int]:
    readers = [_SlowReader(server.socket_path) for _ in range(_READERS)]
    running = [asyncio.ensure_future(reader.run()) for reader in readers]
    try:
        await _until_held_up(readers)
        return await _calls(server, seconds), max(reader.sent for reader in readers)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _until_held_up(readers: list["_SlowReader"]) -> None:
    """Until they send no faster than they read."""
    sent, before = 0, -_READERS - 1
    while sent - before > _READERS:
        await asyncio.sleep(0.5)
        sent, before = sum(reader.sent for reader in readers), sent


class _SlowReader:
    def __init__(self, socket_path: Path) -> None:
        self._side = SideConnection(socket_path, 60.0)
        self._channel = grpc.aio.insecure_channel(f"unix:{socket_path}", _OPTIONS)
        self.sent = 0

    async def run(self) -> None:
        stub = step_pb2_grpc.StepServiceStub(self._channel)
        metadata = ((CLIENT_KEY, self._side.client_token),)
        stream = stub.RunLayers(self._requests(), metadata=metadata)
        try:
            with suppress(grpc.aio.AioRpcError):
                while True:
                    await stream.read()
                    await asyncio.sleep(1.0)
        finally:
            stream.cancel()
            self._side.close()
            await self._channel.close(None)

    async def _requests(self) -> AsyncIterator[step_pb2.RunLayersRequest]:
        while True:
            self.sent += 1
            yield _REQUEST
