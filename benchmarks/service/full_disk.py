"""Case `full disk`: every write of the file tier finds no space, then finds it again."""

import errno
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any

from benchmarks.service.callers import PAGE_TOKENS
from benchmarks.service.prompts import prefill, text
from benchmarks.service.server import Server, server_of, service_config
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.client import SidecarClient
from hisparse_sidecar.errors import HostPoolFull
from hisparse_sidecar.wire.stats import ServerStats

_HOST_PAGES, _PAGES_EACH, _MOST_SECONDS = 64, 4, 60.0
_FAULTS: list[dict[str, Any]] = [
    {"point": "before_write", "error_number": errno.ENOSPC, "one_in": 1, "seed": 1},
    {"point": "half_write", "error_number": errno.ENOSPC, "one_in": 1, "seed": 2},
]
CASE = "a disk that is full, while prompts come"


def measure(_: float) -> Iterator[Measurement]:
    """How long it takes to be told of the disk, and to use it again."""
    numbers = count()
    config = service_config(_HOST_PAGES, 16)
    with server_of(config, files={"free_share": 0.25}, faults=_FAULTS) as server:
        _until(server, numbers, lambda stats: stats.tiers[0].demoted > 0)
        server.tell(signal.SIGUSR1)
        degraded = _until(server, numbers, lambda stats: stats.degraded)
        is_serving = server.is_serving()
        server.tell(signal.SIGUSR2)
        recovered = _until(server, numbers, lambda stats: not stats.degraded)
        lost = _lost(server, next(numbers))
    yield Measurement(CASE, "s until degraded", degraded, "lower")
    yield Measurement(CASE, "health says serving meanwhile", float(is_serving), "higher")
    yield Measurement(CASE, "s until it is used again", recovered, "lower")
    yield Measurement(CASE, "pages lost of what came after", lost, "lower")


def _until(server: Server, numbers: Iterator[int], has: Callable[[ServerStats], bool]) -> float:
    """Seconds in which prompts come, one after the other, until the server's counts are so.

    Raises:
        ValueError: they are not within a minute.
    """
    began = time.monotonic()
    with SidecarClient.connect(server.socket_path) as client:
        while not has(client.server_stats()):
            if time.monotonic() > began + _MOST_SECONDS:
                raise ValueError(f"{CASE}: nothing has changed for {_MOST_SECONDS:g} s")
            with suppress(HostPoolFull):  # pages that no tier takes stay where they are
                prefill(server.socket_path, [next(numbers)], _PAGES_EACH)
    return time.monotonic() - began


def _lost(server: Server, number: int) -> int:
    prefill(server.socket_path, [number], _PAGES_EACH)
    with SidecarClient.connect(server.socket_path) as client:
        found = client.open_prompt(text(number, _PAGES_EACH), 0).cached_tokens
    return _PAGES_EACH - found // PAGE_TOKENS
