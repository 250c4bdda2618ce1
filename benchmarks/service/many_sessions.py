"""Case `many sessions`: 10,000 open ones of 16 pages, of which 200 a second end and begin."""

import asyncio
import random
from collections.abc import Iterator
from itertools import accumulate

from benchmarks.service.callers import Caller, Calls, pace, with_callers
from benchmarks.service.latency import share_rows
from benchmarks.service.server import Server, server_of, service_config
from hisparse_sidecar.cli.bench.rows import Measurement

_SESSIONS, _PAGES_EACH, _PER_SECOND, _ZIPF = 10_000, 16, 200.0, 0.9
_OPENED_TOGETHER = 64
CASE = f"{_SESSIONS} sessions of {_PAGES_EACH} pages, {_PER_SECOND:g} opened and closed a second"


def measure(seconds: float) -> Iterator[Measurement]:
    """Control calls while that many are open, and the server's memory for each."""
    with server_of(service_config(_SESSIONS * _PAGES_EACH, _SESSIONS)) as server:
        opened, closed, grown = asyncio.run(_live(server, seconds))
    yield from share_rows(CASE, "open", opened.seconds)
    yield from share_rows(CASE, "close", closed.seconds)
    yield Measurement(CASE, "calls", len(opened.seconds) + len(closed.seconds), "higher")
    yield Measurement(CASE, "failed or refused calls", _failed(opened) + _failed(closed), "lower")
    yield Measurement(CASE, "B of RSS a session", grown / _SESSIONS, "lower")


def _failed(calls: Calls) -> int:
    return len(calls.failed) + len(calls.refused_seconds)


async def _live(server: Server, seconds: float) -> tuple[Calls, Calls, int]:
    opened, closed, grown = Calls(), Calls(), 0
    draw, shares = random.Random(1), [1 / (rank + 1) ** _ZIPF for rank in range(_SESSIONS)]
    bounds = list(accumulate(shares))

    async def run(callers: list[Caller]) -> None:
        nonlocal grown
        (caller,) = callers
        before = server.rss_bytes
        sessions: list[int | None] = await _open_all(caller)
        grown = server.rss_bytes - before

        async def close_and_open(_: int, due: float) -> None:
            (place,) = draw.choices(range(_SESSIONS), cum_weights=bounds)
            session, sessions[place] = sessions[place], None
            if session is None:
                return  # one that is about to be opened again
            await closed.make(caller.close_sequence(session), due)
            answer = await opened.make(caller.open(_PAGES_EACH))
            sessions[place] = answer.sequence_id if answer else None

        await pace(_PER_SECOND, seconds, close_and_open)

    await with_callers(server.socket_path, 1, run)
    return opened, closed, grown


async def _open_all(caller: Caller) -> list[int | None]:
    sessions: list[int | None] = []
    for _ in range(0, _SESSIONS, _OPENED_TOGETHER):
        count = min(_OPENED_TOGETHER, _SESSIONS - len(sessions))
        answers = await asyncio.gather(*(caller.open(_PAGES_EACH) for _ in range(count)))
        sessions += [answer.sequence_id for answer in answers]
    return sessions
