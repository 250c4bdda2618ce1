"""Draws operations and carries them out, one after the other, until something is wrong."""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from hisparse_sidecar.cli.stress import fault_operations as faults
from hisparse_sidecar.cli.stress import sequence_operations as sequences
from hisparse_sidecar.cli.stress.checks import audit
from hisparse_sidecar.cli.stress.counts import Counts
from hisparse_sidecar.cli.stress.dealer import Dealer, Operation
from hisparse_sidecar.cli.stress.endings import end_run, recover
from hisparse_sidecar.cli.stress.promises import checkpoint
from hisparse_sidecar.cli.stress.run import Run
from hisparse_sidecar.cli.stress.settings import StressSettings
from hisparse_sidecar.cli.stress.soak import leaks, to_json
from hisparse_sidecar.errors import (
    DeadlinePassed,
    DeviceArenaFull,
    HisparseError,
    HostPoolFull,
    TierDown,
    TierFull,
)
from hisparse_sidecar.wire.errors import DeadlineExceeded, ServerUnavailable, Unauthenticated

_FULL = (HostPoolFull, DeviceArenaFull, TierFull)
_REFUSALS: dict[str, tuple[type[HisparseError], ...]] = {
    "alloc": (HostPoolFull,),
    "leak": (HostPoolFull,),
    "open": _FULL,
    "fork": _FULL,
    "truncate": (HostPoolFull, TierFull),
    "preempt": (TierFull,),
    "resume": (*_FULL, TierDown, DeadlinePassed),
}
_GONE = (ServerUnavailable, Unauthenticated, DeadlineExceeded)


def _slow_client(run: Run, operation: Operation) -> None:
    run.bystanders.start(False, operation["pause_seconds"], operation["text"])


def _dying_client(run: Run, operation: Operation) -> None:
    run.bystanders.start(True, operation["pause_seconds"], operation["text"])


_OPERATIONS: dict[str, Callable[[Run, Operation], str | None]] = {
    "alloc": faults.alloc,
    "audit": lambda run, _: audit(run),
    "checkpoint": lambda run, operation: checkpoint(run, drains=operation["drains"]),
    "close": sequences.close,
    "corrupt": faults.corrupt,
    "decode": sequences.decode,
    "disarm": faults.disarm,
    "dying_client": _dying_client,
    "enospc": faults.arm,
    "flip": faults.flip,
    "fork": sequences.fork,
    "hang_up": sequences.hang_up,
    "io": faults.arm,
    "kill": faults.kill,
    "leak": faults.leak,
    "lose": faults.lose,
    "open": sequences.open_prompt,
    "preempt": sequences.preempt,
    "prefill": sequences.prefill,
    "release": faults.release,
    "resume": sequences.resume,
    "slow": faults.arm,
    "slow_client": _slow_client,
    "truncate": sequences.truncate,
}


class Driver:
    """One run.

    Attributes:
        run: its state.
        performed: every operation so far, in order.
    """

    def __init__(self, settings: StressSettings, directory: Path) -> None:
        self.run = Run(settings, directory)
        self.performed: list[Operation] = []

    def drive(
        self, given: Iterable[Operation] | None, show: Callable[[Counts, float], None]
    ) -> Counts:
        """Runs to the end, or to the first thing that is wrong.

        Args:
            given: operations to carry out; None = draw them for as long as the settings say.
            show: is called after each operation, with the seconds since the server was ready.
        """
        try:
            self.run.server.start()
            began = time.monotonic()
            for operation in self._drawn(began) if given is None else given:
                self._perform(operation)
                self._look()
                show(self.run.counts, time.monotonic() - began)
                if not self.run.counts.holds:
                    break
            self._end()
        finally:
            self.run.bystanders.wait()
            self.run.end_sessions()
            self.run.server.stop()
        for line in self.run.server.panics():
            self.run.counts.remark(f"in the server's log: {line}")
        for leak in leaks(self.soak()):
            self.run.counts.remark(leak)
        return self.run.counts

    def soak(self) -> dict[str, Any]:
        """What the servers did over time; see `soak.to_json`."""
        sampler = self.run.sampler
        return to_json(sampler.samples, sampler.openings)

    def _drawn(self, began: float) -> Iterator[Operation]:
        dealer = Dealer(self.run.settings)
        settings = self.run.settings
        while time.monotonic() - began < settings.seconds:
            if settings.operations is not None and len(self.performed) >= settings.operations:
                return
            yield dealer.next(self.run.lives)

    def _perform(self, operation: Operation) -> None:
        self.performed.append(operation)
        name = operation["do"]
        try:
            outcome = self._apply(name, operation)
        except _GONE as error:
            outcome = self._server_gone(name, error)
        except Exception as error:  # whatever it is, there must be a replay file
            outcome = "failed"
            self._remark(name, error)
        what = name if outcome == "done" else f"{name} {outcome}"
        self.run.counts.operations[what] += 1

    def _apply(self, name: str, operation: Operation) -> str:
        if not _names_open_lives(self.run, operation):
            return "skipped"  # in a replay whose server answered otherwise
        try:
            return _OPERATIONS[name](self.run, operation) or "done"
        except _REFUSALS.get(name, ()):
            return "refused"

    def _server_gone(self, name: str, error: HisparseError) -> str:
        if not self.run.server.is_killed:
            self._remark(name, error)
            self.run.counts.remark(f"the server's last words: {self.run.server.last_words()}")
            return "failed"
        try:
            self._recover()
        except Exception as failure:
            self._remark("after a kill", failure)
        return "cut short"

    def _look(self) -> None:
        try:
            self.run.sampler.look()
        except _GONE as error:
            self._server_gone("between two operations", error)

    def _recover(self) -> None:
        recover(self.run)
        self.run.counts.faults["kill"] += 1

    def _end(self) -> None:
        if not self.run.counts.holds:
            with contextlib.suppress(Exception):  # the server may be what has failed
                self.run.note_state()
            return
        try:
            if self.run.server.is_killed:
                self._recover()
            end_run(self.run)
        except Exception as error:
            self._remark("at the end", error)

    def _remark(self, when: str, error: Exception) -> None:
        is_expected = isinstance(error, (HisparseError, OSError))
        words = traceback.format_exception(error) if not is_expected else []
        text = "".join(words) or f"{type(error).__name__}: {error}"
        self.run.counts.remark(f"{when}: {text}")


def _names_open_lives(run: Run, operation: Operation) -> bool:
    name = operation["do"]
    if name == "decode":
        return bool(_ready(run, operation))
    if "life" not in operation or name == "open":
        return True
    life = run.lives.get(operation["life"])
    return life is not None and (life.rests == (name == "resume") or name == "close")


def _ready(run: Run, operation: Operation) -> list[int]:
    named = [run.lives.get(number) for number in operation["lives"]]
    ready = [life.number for life in named if life is not None and not life.rests]
    operation["lives"] = ready
    return ready
