"""Clients of one tenant that ask for more than its share, in a process of their own.

`python -m benchmarks.service.flooders SOCKET CLIENTS PAGES` floods from an empty line of input to
the next, answers each with a line, the second with what came of it, and ends with its input. A
refused client asks again at once: it keeps to no time that it is told.
"""

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.programs import command_of, environment
from benchmarks.service.callers import Caller, Calls, with_callers
from benchmarks.service.prompts import text
from hisparse_sidecar.client import SidecarClient

_SHARES, _TENANT = 10, "flood"
_HOLD_SECONDS = 1.0
_POLL_SECONDS, _WARM_UP_SECONDS, _END_SECONDS = 0.1, 1.0, 60.0


@dataclass
class Flooded:
    """What came of a flood.

    Attributes:
        seconds: that it lasted.
        opened: openings that found room.
        refused: those that did not.
        failed: those that ended in another error.
        most_pages: that the tenant had at once.
    """

    seconds: float = 0.0
    opened: int = 0
    refused: int = 0
    failed: int = 0
    most_pages: int = 0

    def add(self, other: "Flooded") -> None:
        """Counts another flood with this one."""
        self.seconds += other.seconds
        self.opened += other.opened
        self.refused += other.refused
        self.failed += other.failed
        self.most_pages = max(self.most_pages, other.most_pages)


class Flooders:
    """The clients, connected and still until they are told.

    Attributes:
        flooded: what came of all that they did so far.
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.flooded = Flooded()
        self._process = process

    @contextmanager
    def flooding(self) -> Iterator[None]:
        """Inside, each of them asks, and asks again.

        Raises:
            OSError: their process has ended.
        """
        self._tell()
        yield
        self.flooded.add(Flooded(**json.loads(self._tell())))

    def _tell(self) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise OSError(f"the flooding clients ended with {self._process.wait()}, needs 0")
        return answer


@contextmanager
def flooders(socket_path: Path, quota_pages: int, pages_each: int) -> Iterator[Flooders]:
    """Clients of the tenant `flood` that ask for ten times its share of pages."""
    clients = _SHARES * quota_pages // pages_each
    process = subprocess.Popen(
        command_of("benchmarks.service.flooders", socket_path, clients, pages_each),
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Flooders(process)
        process.communicate(timeout=_END_SECONDS)
    finally:
        process.kill()
        process.wait()


async def _serve(socket_path: Path, clients: int, pages_each: int) -> None:
    numbers = itertools.count(1000)

    async def run(callers: list[Caller]) -> None:
        while await _line():
            began, calls, poll = asyncio.get_running_loop().time(), Calls(), _Poll(socket_path)
            asking = [asyncio.ensure_future(_ask(one, calls, next_text)) for one in callers]
            await asyncio.sleep(_WARM_UP_SECONDS)
            print("begun", flush=True)
            await poll.until(asyncio.ensure_future(_line()))
            seconds = asyncio.get_running_loop().time() - began
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            counts = len(calls.seconds), len(calls.refused_seconds), len(calls.failed)
            print(json.dumps(asdict(Flooded(seconds, *counts, poll.most_pages))), flush=True)

    def next_text() -> list[int]:
        return text(next(numbers), pages_each)

    await with_callers(socket_path, clients, run)


async def _ask(caller: Caller, calls: Calls, next_text: Callable[[], list[int]]) -> None:
    while True:
        opened = await calls.make(caller.open_prompt(next_text(), _TENANT))
        if opened is None:
            continue
        try:
            await asyncio.sleep(_HOLD_SECONDS)
        finally:
            await caller.close_sequence(opened.sequence_id)


class _Poll:
    """Looks at how many pages the tenant has, at most."""

    def __init__(self, socket_path: Path) -> None:
        self.most_pages = 0
        self._socket_path = socket_path

    async def until(self, end: "asyncio.Future[str]") -> None:
        with SidecarClient.connect(self._socket_path) as client:
            while not end.done():
                stats = await asyncio.to_thread(client.server_stats)
                self.most_pages = max(self.most_pages, stats.tenants[_TENANT][0])
                await asyncio.wait((end,), timeout=_POLL_SECONDS)


async def _line() -> str:
    return await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
