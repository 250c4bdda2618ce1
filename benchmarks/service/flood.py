"""Case `flood`: a tenant that uses half of its share beside one that asks for ten times its own.

The two modes take turns, and change who begins: what else the machine does meets both alike.
"""

import asyncio
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import median

from benchmarks.ops.spread import ratio_spread
from benchmarks.service.callers import Caller, Calls, pace, with_callers
from benchmarks.service.flooders import Flooders, flooders
from benchmarks.service.prompts import prefill, text
from benchmarks.service.server import Server, server_of, service_config
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.timing import summarize

_QUOTA_PAGES, _PAGES_EACH, _CALM_PROMPTS, _PER_SECOND = 64, 8, 4, 50.0
_ROUNDS, _LEAST_CALLS = 10, 2000
CASE = "a tenant at half of its share beside one that asks for ten times its own"
_PEER = "alone"


@dataclass
class Calm:
    """What the calm tenant saw in one mode.

    Attributes:
        rounds: its openings, by round.
        found: shares of its prompts that were there.
        server_seconds: of CPU that the server took.
        seconds: that the rounds lasted.
    """

    rounds: list[Calls] = field(default_factory=list)
    found: list[float] = field(default_factory=list)
    server_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def calls(self) -> list[float]:
        """Seconds of every opening."""
        return [one for calls in self.rounds for one in calls.seconds]

    @property
    def num_failed(self) -> int:
        """Openings that were refused or failed."""
        return sum(len(calls.failed) + len(calls.refused_seconds) for calls in self.rounds)

    @property
    def hit_percent(self) -> float:
        """Tokens of its prompts that were there."""
        return 100 * sum(self.found) / max(1, len(self.found))


def measure(seconds: float) -> Iterator[Measurement]:
    """The calm tenant's calls and hits, what the server does for both, and what the other has."""
    quotas = {"calm": _QUOTA_PAGES, "flood": _QUOTA_PAGES}
    with server_of(service_config(4 * _QUOTA_PAGES, 128), quota_pages=quotas) as server:
        prefill(server.socket_path, range(_CALM_PROMPTS), _PAGES_EACH, "calm")
        with flooders(server.socket_path, _QUOTA_PAGES, _PAGES_EACH) as others:
            alone, beside = _take_turns(server, others, seconds_of_a_round(seconds))
    yield from _calm_rows(beside, alone)
    flooded = others.flooded
    yield Measurement(CASE, "failed calls", beside.num_failed + flooded.failed, "lower")
    beyond = max(0, flooded.most_pages - _QUOTA_PAGES)
    yield Measurement(CASE, "pages beyond its share, at most", beyond, "lower")
    yield Measurement(CASE, "refusals/s", flooded.refused / flooded.seconds, "lower")


def seconds_of_a_round(seconds: float) -> float:
    """How long a mode has its turn, where it has so many seconds or more."""
    return max(seconds, _LEAST_CALLS / _PER_SECOND) / _ROUNDS


def _calm_rows(beside: Calm, alone: Calm) -> Iterator[Measurement]:
    for share in ("median", "p99"):
        ours, theirs = (_share_ms(one, share) for one in (beside, alone))
        spread = ratio_spread(*(_round_shares(one, share) for one in (beside, alone)))
        yield Measurement(CASE, f"open, {share} ms", ours, "lower", _PEER, theirs, spread)
    ours, theirs = (1e3 * median(_round_shares(one, "p99")) for one in (beside, alone))
    yield Measurement(CASE, "open, median of turns' p99, ms", ours, "lower", _PEER, theirs)
    yield Measurement(CASE, "calls", len(beside.calls), "higher", _PEER, len(alone.calls))
    hits = beside.hit_percent, alone.hit_percent
    yield Measurement(CASE, "hit rate %", hits[0], "higher", _PEER, hits[1])
    shares = [100 * one.server_seconds / one.seconds for one in (beside, alone)]
    yield Measurement(CASE, "server's CPU, % of a core", shares[0], "lower", _PEER, shares[1])


def _share_ms(calm: Calm, share: str) -> float:
    return 1e3 * float(getattr(summarize(calm.calls), f"{share}_seconds"))


def _round_shares(calm: Calm, share: str) -> list[float]:
    return [getattr(summarize(calls.seconds), f"{share}_seconds") for calls in calm.rounds]


def _take_turns(server: Server, others: Flooders, seconds: float) -> tuple[Calm, Calm]:
    alone, beside = Calm(), Calm()
    for number in range(_ROUNDS):
        modes = (alone, beside) if number % 2 == 0 else (beside, alone)
        for mode in modes:
            with others.flooding() if mode is beside else nullcontext():
                _run_round(server, mode, seconds)
    return alone, beside


def _run_round(server: Server, calm: Calm, seconds: float) -> None:
    before = server.cpu_seconds
    calm.rounds.append(asyncio.run(_calls(server, calm.found, seconds)))
    calm.server_seconds += server.cpu_seconds - before
    calm.seconds += seconds


async def _calls(server: Server, found: list[float], seconds: float) -> Calls:
    calls = Calls()

    async def run(callers: list[Caller]) -> None:
        async def open_and_close(number: int, due: float) -> None:
            prompt = text(number % _CALM_PROMPTS, _PAGES_EACH)
            opened = await calls.make(callers[0].open_prompt(prompt, "calm"), due)
            if opened is not None:
                found.append(opened.cached_tokens / (len(prompt) - 1))
                await callers[0].close_sequence(opened.sequence_id)

        await pace(_PER_SECOND, seconds, open_and_close)

    await with_callers(server.socket_path, 1, run)
    return calls
