"""One sidecar for many clients: each sees what it owns. Used by the worker thread only."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from hisparse_sidecar._core import Returning
from hisparse_sidecar.config.sequence import AdmittedSequence, OpenedPrompt
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.layer_io import LayerInputs, LayerOutputs
from hisparse_sidecar.server.clients import Client, Clients
from hisparse_sidecar.sidecar import Sidecar
from hisparse_sidecar.stats import TierBytes
from hisparse_sidecar.step.step import StepKind
from hisparse_sidecar.wire.errors import NotOwner
from hisparse_sidecar.wire.stats import ServerStats


class StepTaken(Exception):  # noqa: N818 - not an error: the caller waits for its turn
    """Another client's step is open; the sidecar has one at a time."""


@dataclass
class _OpenStep:
    number: int
    client: Client
    last_used: float  # of the monotonic clock, in seconds


class SharedSidecar:
    """The methods of `Sidecar`, for a caller: a client, or None for a connectionless one.

    A sequence belongs to the caller that opened or forked it. What no client opened is everyone's.
    """

    def __init__(self, sidecar: Sidecar, clients: Clients, on_step_end: Callable[[], None]) -> None:
        self.sidecar = sidecar
        self.clients = clients
        self.has_lower_tiers = bool(sidecar.lower_tiers())
        self._tenants: list[str] = []
        self._on_step_end = on_step_end
        self._owner_of_sequence: dict[int, Client | None] = {}  # of every open sequence
        self._step: _OpenStep | None = None

    def add_tenant(self, name: str, quota_pages: int) -> None:
        """Limits a tenant, which is new unless its name is ""; `stats` tells of it."""
        if name:
            self.sidecar.add_tenant(name, quota_pages)
        else:
            self.sidecar.set_tenant_quota(name, quota_pages)
        self._tenants.append(name)

    def stats(self, ended_clients: int) -> ServerStats:
        """What the sidecar, its tiers and its tenants are at this moment."""
        tenants = {name: self.sidecar.tenant_usage(name) for name in self._tenants}
        tiers = self.sidecar.lower_tiers()
        return ServerStats(self.sidecar.stats(), tiers, tenants, ended_clients)

    def adopt(self, caller: Client | None, admitted: AdmittedSequence) -> OpenedPrompt:
        """See `Sidecar.adopt`; StepTaken for a prompt while another client's step is open."""
        if admitted.cached_tokens is not None:
            self._check_turn(caller)
        opened = self.sidecar.adopt(admitted)
        self._own(caller, opened.sequence)
        return opened

    def fork_at_once(
        self, caller: Client | None, sequence: int, length: int, max_new_tokens: int
    ) -> int:
        """See `Sidecar.fork_at_once`; StepTaken while another client's step is open."""
        self._check_may_change(caller, sequence)
        return self._own(caller, self.sidecar.fork_at_once(sequence, length, max_new_tokens))

    def truncate(self, caller: Client | None, sequence: int, length: int) -> None:
        """See `Sidecar.truncate`; StepTaken while another client's step is open."""
        self._check_may_change(caller, sequence)
        self.sidecar.truncate(sequence, length)

    def preempt(self, caller: Client | None, sequence: int) -> None:
        """See `Sidecar.preempt`; StepTaken while another client's step is open."""
        self._check_may_change(caller, sequence)
        self.sidecar.preempt(sequence)

    def finish_resume(self, caller: Client | None, returning: Returning) -> int:
        """See `Sidecar.finish_resume`; StepTaken while another client's step is open."""
        self._check_may_change(caller, returning.sequence)
        return self.sidecar.finish_resume(returning)

    def close_sequence(self, caller: Client | None, sequence: int) -> None:
        """See `Sidecar.close_sequence`."""
        self.check_owner(caller, sequence)
        self._close(sequence)

    def tier_bytes(self, caller: Client | None, sequence: int) -> TierBytes:
        """See `Sidecar.tier_bytes`."""
        self.check_owner(caller, sequence)
        return self.sidecar.tier_bytes(sequence)

    def _own(self, caller: Client | None, sequence: int) -> int:
        self._owner_of_sequence[sequence] = caller
        if caller is not None:
            caller.sequences.add(sequence)
        return sequence

    def _close(self, sequence: int) -> None:
        self.sidecar.close_sequence(sequence)
        owner = self._owner_of_sequence.pop(sequence, None)
        if owner is not None:
            owner.sequences.discard(sequence)

    def check_owner(self, caller: Client | None, sequence: int) -> None:
        """Raises NotOwner if the sequence is another client's."""
        owner = self._owner_of_sequence.get(sequence)
        if owner is not None and owner is not caller:
            found = caller or "connectionless"
            raise NotOwner(f"sequence {sequence} belongs to {owner}, the caller is {found}")

    def begin_step(
        self,
        client: Client,
        rows: Sequence[tuple[int, int]],
        kind: StepKind,
        padded_rows: int | None,
        token_ids: Sequence[int] | None,
    ) -> int:
        """See `Sidecar.begin_step`; returns the step's number. StepTaken as for `fork`."""
        for sequence, _ in rows:
            self.check_owner(client, sequence)
        self._check_turn(client)
        step = self.sidecar.begin_step(rows, kind, padded_rows=padded_rows, token_ids=token_ids)
        self._step = _OpenStep(step.number, client, time.monotonic())
        return step.number

    def run_layer(
        self, client: Client, number: int, layer: int, inputs: LayerInputs
    ) -> LayerOutputs:
        """See `Sidecar.run_layer`."""
        step = self.open_step(client, number)
        try:
            return self.sidecar.run_layer(layer, inputs)
        finally:
            step.last_used = time.monotonic()

    def commit_step(self, client: Client, number: int) -> None:
        """See `Sidecar.commit_step`."""
        self.open_step(client, number)
        self.sidecar.commit_step()
        self._end_step()

    def abort_step(self, client: Client, number: int) -> None:
        """See `Sidecar.abort_step`."""
        self.open_step(client, number)
        self._abort()

    def abort_any_step(self, client: Client) -> None:
        """Aborts the client's step if it has one open."""
        if self._step is not None and self._step.client is client:
            self._abort()

    def abort_idle_step(self, max_idle_seconds: float) -> None:
        """Aborts a step that no call has used for longer."""
        if self._step and time.monotonic() - self._step.last_used > max_idle_seconds:
            self._abort()

    def has_open_step(self) -> bool:
        """Whether a step of any client is open."""
        return self._step is not None

    def open_step(self, client: Client, number: int) -> _OpenStep:
        """The step `number` of the client.

        Raises:
            WrongState: it is not open.
            NotOwner: it is another client's.
        """
        step = self._step
        if step is None or step.number != number:
            found = (
                "no step" if step is None or step.client is not client else f"step {step.number}"
            )
            raise WrongState(f"step {number} is not open, {client} has {found} open")
        if step.client is not client:
            raise NotOwner(f"step {number} belongs to {step.client}, the caller is {client}")
        return step

    def _check_may_change(self, caller: Client | None, sequence: int) -> None:
        self.check_owner(caller, sequence)
        self._check_turn(caller)

    def _check_turn(self, caller: Client | None) -> None:
        # its own open step is for the sidecar to refuse
        if self._step is not None and self._step.client is not caller:
            raise StepTaken

    def _abort(self) -> None:
        try:
            self.sidecar.abort_step()
        finally:
            self._end_step()

    def _end_step(self) -> None:
        self._step = None
        self._on_step_end()

    def disconnect(self, client: Client) -> None:
        """Frees what the client owns: its open step, its sequences, its regions."""
        with ExitStack() as frees:  # last pushed runs first, and all run
            frees.callback(self.clients.disconnect, client)
            for sequence in list(client.sequences):
                frees.callback(self.close_sequence, client, sequence)
            frees.callback(self.abort_any_step, client)

    def drain(self, seconds: float) -> tuple[int, int]:
        """Closes every sequence, so that its pages are idle; then see `Sidecar.drain`."""
        if self._step is not None:
            self._abort()
        for sequence in list(self._owner_of_sequence):
            self._close(sequence)
        return self.sidecar.drain(seconds)

    def close(self) -> None:
        """Frees everything, then the sidecar itself."""
        with ExitStack() as frees:
            frees.callback(self.sidecar.close)
            for client in self.clients.connected():
                frees.callback(self.disconnect, client)
