"""One case: how it is prepared, checked, timed, and what rows become of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from benchmarks.ops.timing import GpuTimer, Timed
from benchmarks.ops.work import Ceilings, Work
from hisparse_sidecar.cli.bench.rows import Measurement

_REASON_LENGTH = 160


class PeerAbsentError(Exception):
    """A peer that does not load here."""


@dataclass(frozen=True)
class Contender:
    """Ours or a peer, ready to run: `check` raises before anything is timed."""

    check: Callable[[], None]
    timed: Timed


@dataclass(frozen=True)
class Prepared:
    """A case with its tensors on the device.

    Attributes:
        work: of one call.
        ours: the op of this project.
        peers: by name; made only after ours was checked, for their checks compare with ours.
    """

    work: Work
    ours: Contender
    peers: Mapping[str, Callable[[], Contender]] = field(default_factory=dict)


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
        ours = timer.time(prepared.ours.timed)
    except Exception as error:  # whatever a kernel raises: the other cases go on
        yield _error(case, "", error)
        return
    timed_peers = 0
    for name, make in prepared.peers.items():
        try:
            peer = make()
            peer.check()
            peer_seconds = timer.time(peer.timed)
        except PeerAbsentError:
            continue  # said once, at the start of the suite
        except Exception as error:
            yield _error(case, name, error)
            continue
        timed_peers += 1
        yield from _rows(case, prepared.work, ceilings, ours, name, peer_seconds)
    if not timed_peers:
        yield from _rows(case, prepared.work, ceilings, ours)


def _rows(
    case: Case,
    work: Work,
    ceilings: Ceilings,
    ours: float,
    peer: str = "",
    peer_seconds: float | None = None,
) -> Iterator[Measurement]:
    def both(of: Callable[[float], float]) -> tuple[float, str, float | None]:
        return of(ours), peer, None if peer_seconds is None else of(peer_seconds)

    yield _row(case, "median us", "lower", *both(lambda seconds: seconds * 1e6))
    unit = work.rate(ours, ceilings)[0]
    yield _row(case, unit, "higher", *both(lambda seconds: work.rate(seconds, ceilings)[1]))
    floor = work.floor_seconds(ceilings)
    yield _row(case, "share of the ceiling", "higher", *both(lambda seconds: floor / seconds))
    if work.operations:
        yield Measurement(case.name, "FLOP/B", work.intensity, "higher")


def _row(
    case: Case, metric: str, better: str, ours: float, peer: str, peer_value: float | None
) -> Measurement:
    return Measurement(case.name, metric, ours, better, peer, peer_value)  # type: ignore[arg-type]


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
