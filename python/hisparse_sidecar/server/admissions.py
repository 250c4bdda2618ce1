"""Calls that get a sequence room: they may wait for lower tiers beside others, or be refused."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hisparse_sidecar.config.sequence import AdmittedSequence, OpenedPrompt
from hisparse_sidecar.errors import HostPoolFull, TierFull
from hisparse_sidecar.server.clients import Client
from hisparse_sidecar.server.fair_share import FairShare
from hisparse_sidecar.server.gate import Gate, client_token
from hisparse_sidecar.server.grpc_types import Context
from hisparse_sidecar.server.refusal_pace import RefusalPace
from hisparse_sidecar.server.worker import Worker

_Prepared = TypeVar("_Prepared")
_Result = TypeVar("_Result")
_MAX_TRIES = 3
_OPENINGS_EACH = 16  # of a tenant, or a client, that wait for lower tiers at a time
_AT_ONCE_TOKENS = 4096  # looking for them takes less than handing them to a thread, or little more


def _nothing(*_: object) -> None:
    """What is to be done about a result that holds nothing."""


@dataclass(frozen=True)
class Opening:
    """A sequence that is to be opened.

    Attributes:
        tenant: whose share of the threads, and of the host pool, it takes; "" = of the threads
            the calling client's.
        num_tokens: of its prompt, which are looked for.
        num_bytes: of the call's message, as sent and decoded.
        admit: gives it room, whatever step is open; may run in any thread.
    """

    tenant: str
    num_tokens: int
    num_bytes: int
    admit: Callable[[], AdmittedSequence]


@dataclass(frozen=True)
class Halves(Generic[_Prepared, _Result]):
    """A call in two halves, of which the first may wait for lower tiers.

    Attributes:
        prepare: runs in a thread of its own, whatever step is open, for so many seconds at most.
        finish: what to run then in the worker thread, of the caller and what was prepared.
        release: given what was prepared in the end.
        undo: as for `Gate.call`.
    """

    prepare: Callable[[float], _Prepared]
    finish: Callable[[Client | None, _Prepared], _Result]
    release: Callable[[_Prepared], object] = _nothing
    undo: Callable[[Client | None, _Result], object] = _nothing


class Admissions:
    """Runs them, and answers those that a full share refuses at the pace of who asks.

    Attributes:
        refusals: when they are answered.
    """

    def __init__(self, gate: Gate, openers: Worker, refusals: RefusalPace) -> None:
        self.refusals = refusals
        self._gate, self._shared = gate, gate.shared
        self._openings = FairShare(openers, _OPENINGS_EACH)

    async def open(self, context: Context, opening: Opening) -> OpenedPrompt:
        """Opens a sequence for the caller; cancelled, nothing is open."""
        token = client_token(context)
        self._shared.clients.find(token)  # who is nobody has nothing admitted
        with self._gate.counting(), self._gate.liveness.calling(token):
            try:
                admitted = await self._admit(opening, opening.tenant or token)
            except TierFull:
                left = context.time_remaining()
                await self.refusals.wait(("tenant", opening.tenant), opening.num_bytes, left)
                raise
            try:
                return await self._adopt(context, admitted)
            except BaseException:
                self._discard(admitted)
                raise

    async def in_halves(
        self, context: Context, sequence: int, halves: "Halves[_Prepared, _Result]"
    ) -> _Result:
        """As `Gate.call`, of a call on a sequence that may wait for lower tiers beside other calls.

        Where others take the room that was made, it is made again, while there is time.

        Args:
            context: of the gRPC call.
            sequence: the caller's; before that is known, nothing is done for it.
            halves: what to do.
        """
        token = client_token(context)
        with self._gate.counting():
            await self._gate.call(
                context, lambda caller: self._shared.check_owner(caller, sequence)
            )
            try:
                return await self._try_halves(context, halves)
            except TierFull:
                await self.refusals.wait(("client", token), 0, context.time_remaining())
                raise

    async def _admit(self, opening: Opening, party: str | None) -> AdmittedSequence:
        if opening.num_tokens <= _AT_ONCE_TOKENS and not self._shared.has_lower_tiers:
            return opening.admit()  # which has nothing to wait for
        return await self._openings.run(party, opening.admit, self._discard)

    async def _adopt(self, context: Context, admitted: AdmittedSequence) -> OpenedPrompt:
        def undo(caller: Client | None, opened: OpenedPrompt) -> None:
            self._shared.close_sequence(caller, opened.sequence)

        return await self._gate.call(
            context, lambda caller: self._shared.adopt(caller, admitted), undo
        )

    async def _try_halves(self, context: Context, halves: "Halves[_Prepared, _Result]") -> _Result:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._shared.sidecar.config.tiers.load_seconds
        num_tries = 0
        while True:
            num_tries += 1
            try:
                return await self._both(context, halves, max(0.0, end - loop.time()))
            except HostPoolFull:
                if num_tries == _MAX_TRIES or loop.time() >= end:
                    raise

    async def _both(
        self, context: Context, halves: "Halves[_Prepared, _Result]", seconds: float
    ) -> _Result:
        with self._gate.liveness.calling(client_token(context)):
            prepared = await self._openings.run(
                client_token(context), lambda: halves.prepare(seconds), halves.release
            )
        try:
            return await self._gate.call(
                context, lambda caller: halves.finish(caller, prepared), halves.undo
            )
        finally:
            halves.release(prepared)

    def _discard(self, admitted: AdmittedSequence) -> None:
        self._gate.worker.submit(lambda: self._shared.sidecar.discard(admitted))
