"""Case `drain`: SIGTERM under 1,000 calls a second, with 2 GiB of pages that nobody has written."""

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.service.callers import Caller, pace, told_by, with_callers
from benchmarks.service.prompts import prefill, text
from benchmarks.service.server import Server, server_of, service_config
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.client import SidecarClient
from hisparse_sidecar.config import ModelShape
from hisparse_sidecar.wire.names import ERROR_KEY

_DIRTY_BYTES, _PAGES_EACH, _PER_SECOND, _CALLERS, _BEFORE_SECONDS = 2 << 30, 2, 1000.0, 8, 2.0
_LAYERS, _CALLS_A_TURN = 16, 8
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
CASE = f"SIGTERM under {_PER_SECOND:g} calls a second, 2 GiB to save"


def measure(_: float) -> Iterator[Measurement]:
    """The end, and what the next server finds."""
    shape = ModelShape(_LAYERS, (0,) * _LAYERS, 1, 8, 1.0)  # the others share its selection
    page_bytes = 64 * (_LAYERS * 2304 + 512) + 512  # fp32 rows; index rows and pooled key of one
    prompts = _DIRTY_BYTES // (page_bytes * _PAGES_EACH) + 1
    pages = prompts * _PAGES_EACH
    config = service_config(pages + 512, 300, model=shape, kv_layout="fp32", index_layout="fp32")
    with server_of(config, files={"free_share": 0.0, "io_threads": 4}) as server:
        prefill(server.socket_path, range(prompts), _PAGES_EACH)
        ended = asyncio.run(_end(server))
        server.start()
        found = _found_pages(server, prompts)
    yield Measurement(CASE, "GB to save", pages * page_bytes / 1e9, "higher")
    yield Measurement(CASE, "calls/s before it", ended.per_second, "higher")
    yield Measurement(CASE, "ms until health says so", ended.flip_ms, "lower")
    yield Measurement(CASE, "s until it has ended", ended.seconds, "lower")
    yield Measurement(CASE, "calls under way that failed", len(ended.failed), "lower")
    yield Measurement(CASE, "pages not found again", pages - found, "lower")


class _Ending:
    """What the clients of a server see of its end."""

    def __init__(self) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self.told = float("inf")  # when SIGTERM was sent, of `time.perf_counter`
        self.flip_ms = self.seconds = self.per_second = float("nan")

    async def call(self, caller: Caller) -> None:
        """Opens and closes until told that the server drains."""
        for _ in range(_CALLS_A_TURN // 2):
            began = time.perf_counter()
            try:
                opened = await caller.open(1)
                await caller.close_sequence(opened.sequence_id)
            except grpc.aio.AioRpcError as error:
                if began < self.told and told_by(error).get(ERROR_KEY) != "Draining":
                    self.failed.append(f"{error.code().name}: {error.details()}")
                return
            self.answered += 2 * (began < self.told)


async def _end(server: Server) -> _Ending:
    ending = _Ending()

    async def run(callers: list[Caller]) -> None:
        async def call(number: int, _: float) -> None:
            await ending.call(callers[number % _CALLERS])

        load = asyncio.ensure_future(pace(_PER_SECOND / _CALLS_A_TURN, 60.0, call))
        await asyncio.sleep(_BEFORE_SECONDS)
        watching = threading.Thread(target=_watch_health, args=(server, ending))
        watching.start()
        await asyncio.sleep(0.2)
        ending.told = time.perf_counter()
        server.tell(signal.SIGTERM)
        await asyncio.to_thread(server.wait)
        ending.seconds = time.perf_counter() - ending.told
        load.cancel()
        watching.join()

    await with_callers(server.socket_path, _CALLERS, run)
    ending.per_second = ending.answered / (_BEFORE_SECONDS + 0.2)
    return ending


def _watch_health(server: Server, ending: _Ending) -> None:
    with grpc.insecure_channel(f"unix:{server.socket_path}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        with suppress(grpc.RpcError):
            for answer in watch:
                if answer.status == _NOT_SERVING:
                    ending.flip_ms = 1e3 * (time.perf_counter() - ending.told)
                    return


def _found_pages(server: Server, prompts: int) -> int:
    with SidecarClient.connect(server.socket_path) as client:
        found = 0
        for number in range(prompts):
            opened = client.open_prompt(text(number, _PAGES_EACH), 0)
            found += opened.cached_tokens // 64
            client.close_sequence(opened.sequence)
    return found
