"""Spares a tier that keeps failing: the states of `rust/core/src/tier/breaker.rs`, in Python."""

import threading
from collections import deque
from dataclasses import dataclass
from enum import Enum

from hisparse_sidecar._core import TierDown

# one deadline that several threads hand over as time left comes to times that differ by the turns
# of the interpreter's lock, 5 ms each
_TOGETHER_SECONDS = 0.02


@dataclass(frozen=True)
class BreakerLimits:
    """When a breaker opens, and how often it tries again."""

    failures: int = 5
    window_seconds: float = 10.0
    probe_seconds: float = 1.0


class BreakerState(Enum):
    """What is let through: every call, none, or none while one is tried."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


@dataclass(frozen=True)
class Admission:
    """Leave to make one call, which must be reported; `probe` is None where all are let through."""

    probe: int | None


_TO_ALL = Admission(None)


class Breaker:
    """Opens after `failures` within the window; then lets one probe through at a time.

    Times are arguments, by the monotonic clock: the breaker reads none.
    """

    def __init__(self, tier: str, limits: BreakerLimits) -> None:
        self._tier = tier
        self._limits = limits
        self._lock = threading.Lock()
        self._state = BreakerState.CLOSED
        self._failed_at: deque[float] = deque(maxlen=limits.failures)
        self._probe_at = 0.0
        self._num_probes = 0
        self._late_by: float | None = None  # of the last late call that counted

    @property
    def state(self) -> BreakerState:
        """What is let through; to show, not to decide by."""
        return self._state

    def admit(self, now: float) -> Admission:
        """Lets a call through. A probe that never reports is given up when the next is due.

        Raises:
            TierDown: the tier is spared; says when the next call is let through.
        """
        if self.state is BreakerState.CLOSED:
            return _TO_ALL  # without the lock: a call that begins as it opens is let through too
        with self._lock:
            if self._state is BreakerState.CLOSED:
                return _TO_ALL
            if now < self._probe_at:
                raise TierDown(self._refusal(now))
            self._state = BreakerState.HALF_OPEN
            self._probe_at = now + self._limits.probe_seconds
            self._num_probes += 1
            return Admission(self._num_probes)

    def succeeded(self, admission: Admission) -> None:
        """The call was answered; the probe under way closes the breaker."""
        if admission is _TO_ALL:
            return
        with self._lock:
            if self._is_probe_under_way(admission):
                self._state = BreakerState.CLOSED
                self._failed_at.clear()

    def came_late(self, admission: Admission, by: float, now: float) -> None:
        """The call was not answered by its deadline. Calls that one deadline has ended count once.

        That one caller had little time for all of its calls says little about the tier.
        """
        with self._lock:
            counted = self._late_by
            if counted is not None and abs(by - counted) < _TOGETHER_SECONDS:
                if admission.probe is None:
                    return
            else:
                self._late_by = by
        self.failed(admission, now)

    def not_made(self, admission: Admission, now: float) -> None:
        """The call was not made after all, which says nothing; a probe is due again at once."""
        with self._lock:
            if self._is_probe_under_way(admission):
                self._state = BreakerState.OPEN
                self._probe_at = now

    def failed(self, admission: Admission, now: float) -> None:
        """The call failed."""
        with self._lock:
            if self._is_probe_under_way(admission):
                self._open(now)
            elif self._state is BreakerState.CLOSED and admission.probe is None:
                self._failed_at.append(now)
                is_full = len(self._failed_at) == self._limits.failures
                if is_full and now - self._failed_at[0] <= self._limits.window_seconds:
                    self._open(now)

    def open(self, now: float) -> None:
        """Spares the tier before any call has failed: it is known not to answer."""
        with self._lock:
            self._open(now)

    def _open(self, now: float) -> None:
        self._state = BreakerState.OPEN
        self._probe_at = now + self._limits.probe_seconds

    def _is_probe_under_way(self, admission: Admission) -> bool:
        return self._state is BreakerState.HALF_OPEN and admission.probe == self._num_probes

    def _refusal(self, now: float) -> str:
        failures, permitted = len(self._failed_at), self._limits.failures - 1
        retry_ms = max(1, round((self._probe_at - now) * 1000))
        calls = f"{failures} calls failed, {permitted} permitted"
        return f"{self._tier} down: {calls}; next try in {retry_ms} ms"
