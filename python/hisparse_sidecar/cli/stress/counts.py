"""What a run has done and found, counted."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hisparse_sidecar.cli.stress.footprint import Footprint

_MOST_REMARKS = 20


@dataclass
class Counts:
    """Counters of one run.

    Attributes:
        operations: by name and outcome: "open", "open refused".
        faults: injected, by kind.
        clients: slow and dying ones.
        checked_bytes: bytes that were compared with the oracle's.
        checked_promises: prompts that were asked for after a flush had promised their pages.
        hits: tokens of prompts that were found.
        wrong_bytes: bytes that differ.
        pages_lost: pages that a flush had acknowledged and nobody finds.
        leaked_pages: host pages in use at the end, when nobody uses one; None = not known yet.
        leaked_leases: leases, pins, holds and leased pages that are left at the end; None as well.
        footprint: of the server's process, as last seen; None = not yet.
        remarks: what was wrong, in words.
    """

    operations: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    clients: Counter[str] = field(default_factory=Counter)
    checked_bytes: int = 0
    checked_promises: int = 0
    hits: int = 0
    wrong_bytes: int = 0
    pages_lost: int = 0
    leaked_pages: int | None = None
    leaked_leases: int | None = None
    footprint: Footprint | None = None
    remarks: list[str] = field(default_factory=list)
    recovery_ms: list[float] = field(default_factory=list)
    restart_ms: list[float] = field(default_factory=list)
    _latency_us: dict[str, list[float]] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return not self.remarks

    def remark(self, text: str) -> None:
        """Notes something that must not be."""
        if len(self.remarks) < _MOST_REMARKS:
            self.remarks.append(text)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Times calls that end well."""
        began = time.perf_counter()
        yield
        self._latency_us.setdefault(name, []).append(1e6 * (time.perf_counter() - began))

    def last_us(self, name: str) -> float:
        """How long the last call of the kind took that ended well."""
        return self._latency_us[name][-1]

    def latency_us(self) -> dict[str, dict[str, float]]:
        """p50 and p99 of each kind of call."""
        return {name: _percentiles(found) for name, found in sorted(self._latency_us.items())}


def _percentiles(found: list[float]) -> dict[str, float]:
    ordered = sorted(found)
    at = {name: int(share * (len(ordered) - 1)) for name, share in (("p50", 0.5), ("p99", 0.99))}
    return {name: round(ordered[index], 1) for name, index in at.items()} | {"count": len(ordered)}
