"""Case `slow disk`: prompts that the host pool has, while others are loaded from a disk that hangs.

One call of the disk in ten takes 200 ms longer, one in a thousand 2 s. Beside it: the same load on
the disk as it is.
"""

import asyncio
import itertools
import signal
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.service.callers import Caller, Calls, pace, with_callers
from benchmarks.service.latency import share_rows
from benchmarks.service.prompts import prefill, text
from benchmarks.service.server import Server, server_of, service_config
from hisparse_sidecar.cli.bench.rows import Measurement

_HOT_PROMPTS, _HOT_PAGES = 8, 4
_COLD_PROMPTS, _COLD_PAGES, _COLD_CALLERS = 64, 16, 4
_HOST_PAGES = 256
_PER_SECOND = 100.0
_LOAD_EVERY_SECONDS = 0.25  # of a client, or it would load the more, the faster the disk is
_FAULTS: tuple[dict[str, Any], ...] = (
    {"point": "before_read", "sleep_seconds": 0.2, "one_in": 10, "seed": 1},
    {"point": "before_write", "sleep_seconds": 0.2, "one_in": 10, "seed": 2},
    {"point": "half_write", "sleep_seconds": 2.0, "one_in": 1000, "seed": 3},
)
CASE = f"{_COLD_CALLERS} clients load from a disk of which 1 call in 10 takes 200 ms more"
_PEER = "the disk as it is"


def measure(seconds: float) -> Iterator[Measurement]:
    """Host hits, and loads from the disk."""
    config = service_config(_HOST_PAGES, 64)
    with server_of(config, files={}, faults=_FAULTS) as server:
        prefill(server.socket_path, range(1000, 1000 + _COLD_PROMPTS), _COLD_PAGES)
        prefill(server.socket_path, range(_HOT_PROMPTS), _HOT_PAGES)
        hits, loads = asyncio.run(_load(server, seconds))
        server.tell(signal.SIGUSR1)
        slow_hits, slow_loads = asyncio.run(_load(server, seconds))
    yield from share_rows(CASE, "host hit", slow_hits.seconds, hits.seconds, _PEER)
    yield from share_rows(CASE, "load", slow_loads.seconds, loads.seconds, _PEER)
    yield Measurement(CASE, "failed calls", len(slow_hits.failed + slow_loads.failed), "lower")


async def _load(server: Server, seconds: float) -> tuple[Calls, Calls]:
    hits, loads, until = Calls(), Calls(), time.monotonic() + seconds
    numbers = itertools.cycle(range(1000, 1000 + _COLD_PROMPTS))

    async def open_cold(caller: Caller) -> None:
        while time.monotonic() < until:
            due = time.monotonic() + _LOAD_EVERY_SECONDS
            await _open_and_close(caller, loads, text(next(numbers), _COLD_PAGES))
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def run(callers: list[Caller]) -> None:
        hot, *cold = callers

        async def open_hot(number: int, due: float) -> None:
            await _open_and_close(hot, hits, text(number % _HOT_PROMPTS, _HOT_PAGES), due)

        await asyncio.gather(pace(_PER_SECOND, seconds, open_hot), *map(open_cold, cold))

    await with_callers(server.socket_path, 1 + _COLD_CALLERS, run)
    return hits, loads


async def _open_and_close(
    caller: Caller, calls: Calls, token_ids: list[int], due: float | None = None
) -> None:
    opened = await calls.make(caller.open_prompt(token_ids), due)
    if opened is not None:
        await caller.close_sequence(opened.sequence_id)
