"""Case `flood`: a tenant that uses half of its share beside one that asks for ten times its own."""

import asyncio
from collections.abc import Iterator

from benchmarks.service.callers import Caller, Calls, pace, with_callers
from benchmarks.service.flooders import flooding
from benchmarks.service.latency import share_rows
from benchmarks.service.prompts import prefill, text
from benchmarks.service.server import Server, server_of, service_config
from hisparse_sidecar.cli.bench.rows import Measurement

_QUOTA_PAGES, _PAGES_EACH, _CALM_PROMPTS, _PER_SECOND = 64, 8, 4, 50.0
CASE = "a tenant at half of its share beside one that asks for ten times its own"
_PEER = "alone"


def measure(seconds: float) -> Iterator[Measurement]:
    """The calm tenant's calls and hits, and what the other has at most."""
    quotas = {"calm": _QUOTA_PAGES, "flood": _QUOTA_PAGES}
    with server_of(service_config(4 * _QUOTA_PAGES, 128), quota_pages=quotas) as server:
        prefill(server.socket_path, range(_CALM_PROMPTS), _PAGES_EACH, "calm")
        alone, hits_alone = asyncio.run(_calm(server, seconds))
        with flooding(server.socket_path, _QUOTA_PAGES, _PAGES_EACH) as flood:
            calm, hits = asyncio.run(_calm(server, seconds))
    yield from share_rows(CASE, "open", calm.seconds, alone.seconds, _PEER)
    yield Measurement(CASE, "hit rate %", 100 * hits, "higher", _PEER, 100 * hits_alone)
    yield Measurement(CASE, "failed calls", len(calm.failed) + len(calm.refused_seconds), "lower")
    beyond = max(0, flood.most_pages - _QUOTA_PAGES)
    yield Measurement(CASE, "pages beyond its share, at most", beyond, "lower")


async def _calm(server: Server, seconds: float) -> tuple[Calls, float]:
    calls, found = Calls(), []

    async def run(callers: list[Caller]) -> None:
        async def open_and_close(number: int, due: float) -> None:
            prompt = text(number % _CALM_PROMPTS, _PAGES_EACH)
            opened = await calls.make(callers[0].open_prompt(prompt, "calm"), due)
            if opened is not None:
                found.append(opened.cached_tokens / (len(prompt) - 1))
                await callers[0].close_sequence(opened.sequence_id)

        await pace(_PER_SECOND, seconds, open_and_close)

    await with_callers(server.socket_path, 1, run)
    return calls, sum(found) / max(1, len(found))
