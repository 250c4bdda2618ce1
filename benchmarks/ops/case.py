"""One case: how it is prepared, checked, timed, and what rows become of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

import torch

from benchmarks.ops.spread import ratio_spread
from benchmarks.ops.timing import GpuTimer, Timed
from benchmarks.ops.work import Ceilings, Work
from hisparse_sidecar.cli.bench.rows import Measurement

_REASON_LENGTH = 160
_Value = Callable[[float], float]  # of seconds


class PeerAbsentError(Exception):
    """A peer that does not load here."""


@dataclass(frozen=True)
class Contender:
    """Ours or a peer, ready to run.

    Attributes:
        check: raises before anything is timed.
        timed: what runs.
        allowed_seconds: added to each call's time, where the peer is an aim: so much on top.
        also: what must run besides, timed in pieces of their own; a call takes all of them.
    """

    check: Callable[[], None]
    timed: Timed
    allowed_seconds: float = 0.0
    also: tuple[Timed, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A case with its tensors on the device.

    Attributes:
        work: of one call.
        ours: the op of this project.
        peers: by name; made only after ours was checked, for their checks compare with ours.
        facts: of ours besides its time, higher is better: values by metric, found after the check.
    """

    work: Work
    ours: Contender
    peers: Mapping[str, Callable[[], Contender]] = field(default_factory=dict)
    facts: Callable[[], Mapping[str, float]] = dict


@dataclass(frozen=True)
class Case:
    """What can be run: a name with its sizes, and how to make it."""

    name: str
    prepare: Callable[[], Prepared]


def measure_case(case: Case, timer: GpuTimer, ceilings: Ceilings) -> Iterator[Measurement]:
    """Rows of one case. An error is a row too, and never a time; a peer's does not stop others."""
    try:
        prepared = case.prepare()
        prepared.ours.check()
        facts = prepared.facts()
        ours = _repeat(prepared.ours, timer)
    except PeerAbsentError:
        return  # ours calls a peer's op; said once, at the start of the suite
    except Exception as error:  # whatever a kernel raises: the other cases go on
        yield _error(case, "", error)
        return
    timed_peers = 0
    for name, make in prepared.peers.items():
        try:
            peer = make()
            peer.check()
            peer_seconds = _repeat(peer, timer)
        except PeerAbsentError:
            continue
        except Exception as error:
            yield _error(case, name, error)
            continue
        timed_peers += 1
        yield from _rows(case, prepared.work, ceilings, ours, name, peer_seconds)
    if not timed_peers:
        yield from _rows(case, prepared.work, ceilings, ours)
    for metric, value in facts.items():
        yield Measurement(case.name, metric, value, "higher")


def _repeat(contender: Contender, timer: GpuTimer) -> list[float]:
    pieces = [timer.repeat(timed) for timed in (contender.timed, *contender.also)]
    together = zip(*pieces, strict=False)  # a long one is repeated less
    return [contender.allowed_seconds + sum(parts) for parts in together]


def _rows(
    case: Case,
    work: Work,
    ceilings: Ceilings,
    ours: list[float],
    peer: str = "",
    peer_runs: list[float] | None = None,
) -> Iterator[Measurement]:
    """Times, rates and shares; their ratios are the same, and so is how far these vary."""
    spread = ratio_spread(ours, peer_runs) if peer_runs else None

    def row(metric: str, better: Literal["higher", "lower"], of: _Value) -> Measurement:
        theirs = of(median(peer_runs)) if peer_runs else None
        return Measurement(case.name, metric, of(median(ours)), better, peer, theirs, spread)

    yield row("median us", "lower", lambda seconds: seconds * 1e6)
    unit = work.rate(median(ours), ceilings)[0]
    yield row(unit, "higher", lambda seconds: work.rate(seconds, ceilings)[1])
    floor = work.floor_seconds(ceilings)
    yield row("share of the ceiling", "higher", lambda seconds: floor / seconds)
    if work.operations:
        yield Measurement(case.name, "FLOP/B", work.intensity, "higher")


def _error(case: Case, peer: str, error: Exception) -> Measurement:
    """A row that holds no time: its metric is the reason, its value 0."""
    said = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_LENGTH]
    who = f"error of {peer}" if peer else "error"
    return Measurement(case.name, f"{who}: {said}", 0.0, "higher")


def context_is_lost() -> bool:
    """Whether an error of the device has ended this process's use of it."""
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda")
    except RuntimeError:
        return True
    return False
