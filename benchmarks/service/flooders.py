"""Clients of one tenant that ask for more than its share, in a process of their own.

`python -m benchmarks.service.flooders SOCKET CLIENTS PAGES` runs until its input ends and then
prints the most pages that the tenant had.
"""

import asyncio
import itertools
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.programs import command_of, environment
from benchmarks.service.callers import Caller, Calls, with_callers
from benchmarks.service.prompts import text
from hisparse_sidecar.client import SidecarClient

_SHARES, _TENANT = 10, "flood"
_RETRY_SECONDS, _HOLD_SECONDS = 0.25, 1.0
_POLL_SECONDS, _WARM_UP_SECONDS, _END_SECONDS = 0.1, 2.0, 60.0


class Flood:
    """What came of it.

    Attributes:
        most_pages: that the tenant had at once; known once the flood has ended.
    """

    most_pages = 0


@contextmanager
def flooding(socket_path: Path, quota_pages: int, pages_each: int) -> Iterator[Flood]:
    """A flood by the tenant `flood` of ten times its share of pages.

    Raises:
        OSError: the process of its clients failed.
    """
    clients = _SHARES * quota_pages // pages_each
    process = subprocess.Popen(
        command_of("benchmarks.service.flooders", socket_path, clients, pages_each),
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    flood = Flood()
    try:
        assert process.stdout is not None
        process.stdout.readline()  # its clients have begun
        yield flood
        printed, _ = process.communicate(timeout=_END_SECONDS)
    finally:
        process.kill()
        process.wait()
    if not printed:
        raise OSError(f"the flooding clients ended with {process.returncode}, needs 0")
    flood.most_pages = int(printed)


async def _flood(socket_path: Path, clients: int, pages_each: int) -> int:
    chance, numbers = random.Random(0), itertools.count(1000)  # each retries at times of its own
    ended = asyncio.Event()
    _call_at_end_of_input(asyncio.get_running_loop(), ended)

    async def ask(caller: Caller) -> None:
        await asyncio.sleep(chance.uniform(0.0, _RETRY_SECONDS))
        while not ended.is_set():
            opened = await Calls().make(
                caller.open_prompt(text(next(numbers), pages_each), _TENANT)
            )
            pause = _RETRY_SECONDS if opened is None else _HOLD_SECONDS
            await asyncio.sleep(pause * chance.uniform(0.5, 1.5))
            if opened is not None:
                await caller.close_sequence(opened.sequence_id)

    most_pages = 0

    async def run(callers: list[Caller]) -> None:
        nonlocal most_pages
        asking = asyncio.gather(*map(ask, callers))
        await asyncio.sleep(_WARM_UP_SECONDS)
        print("begun", flush=True)
        most_pages = await _most_pages(socket_path, ended)
        await asking

    await with_callers(socket_path, clients, run)
    return most_pages


async def _most_pages(socket_path: Path, ended: asyncio.Event) -> int:
    most = 0
    with SidecarClient.connect(socket_path) as client:
        while not ended.is_set():
            stats = await asyncio.to_thread(client.server_stats)
            most = max(most, stats.tenants[_TENANT][0])
            await asyncio.sleep(_POLL_SECONDS)
    return most


def _call_at_end_of_input(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    def wait() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    print(asyncio.run(_flood(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
