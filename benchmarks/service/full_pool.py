"""Case `full pool`: 32 clients ask for half as much again as there is, without a pause."""

import asyncio
import random
import time
from collections.abc import Iterator

from benchmarks.service.callers import Caller, Calls, with_callers
from benchmarks.service.latency import share_rows
from benchmarks.service.server import Server, server_of, service_config
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.client import SidecarClient

_CLIENTS, _PAGES_EACH, _POOL_PAGES = 32, 3, 64
_MOST_HOLD_SECONDS = 0.2
CASE = f"{_CLIENTS} clients ask for 150 % of the host pool"


def measure(seconds: float) -> Iterator[Measurement]:
    """Refusals, answers, and what is left when all is over."""
    with server_of(service_config(_POOL_PAGES, _CLIENTS)) as server:
        asyncio.run(_demand(server, min(10.0, seconds)))  # memory is measured from then on
        before = server.rss_bytes
        calls = asyncio.run(_demand(server, seconds))
        grown = server.rss_bytes / before - 1
        free = _free_pages(server)
    yield Measurement(CASE, "calls/s", (len(calls.seconds) + _refused(calls)) / seconds, "higher")
    yield Measurement(CASE, "refusals/s", _refused(calls) / seconds, "higher")
    yield from share_rows(CASE, "refusal", calls.refused_seconds)
    yield from share_rows(CASE, "admission", calls.seconds)
    yield Measurement(CASE, "refusals without a time to try again", calls.without_retry, "lower")
    yield Measurement(CASE, "failed calls", len(calls.failed), "lower")
    yield Measurement(CASE, "RSS growth %", 100 * grown, "lower")
    yield Measurement(CASE, "pages lost", _POOL_PAGES - free, "lower")


def _refused(calls: Calls) -> int:
    return len(calls.refused_seconds)


async def _demand(server: Server, seconds: float) -> Calls:
    calls, until = Calls(), time.monotonic() + seconds

    async def ask(caller: Caller, seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() < until:
            opened = await calls.make(caller.open(_PAGES_EACH))
            if opened is not None:
                await asyncio.sleep(_MOST_HOLD_SECONDS * draw.random())
                await caller.close_sequence(opened.sequence_id)

    async def all_ask(callers: list[Caller]) -> None:
        await asyncio.gather(*(ask(caller, seed) for seed, caller in enumerate(callers)))

    await with_callers(server.socket_path, _CLIENTS, all_ask)
    return calls


def _free_pages(server: Server) -> int:
    with SidecarClient.connect(server.socket_path) as client:
        return client.stats().core.host_pages_free
