"""SequenceService: the life of a sequence."""

# ruff: noqa: D102, N802 - names and contracts of the methods are those of the proto

from collections.abc import Sequence

from hisparse_sidecar._core import Returning
from hisparse_sidecar._proto.hisparse.v1 import sequence_pb2, sequence_pb2_grpc
from hisparse_sidecar.config.sequence import AdmittedSequence, OpenOptions
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.server.admissions import Admissions, Halves, Opening
from hisparse_sidecar.server.clients import Client
from hisparse_sidecar.server.gate import Gate
from hisparse_sidecar.server.grpc_types import Context
from hisparse_sidecar.stats import TierBytes
from hisparse_sidecar.wire.selections import decode_selection
from hisparse_sidecar.wire.stats import encode_tier_bytes

_ID_BYTES = 8  # of a token id in a decoded message, where most take 1 to 3 bytes as sent


class SequenceServicer(sequence_pb2_grpc.SequenceServiceServicer):
    """See sequence.proto."""

    def __init__(self, gate: Gate, admissions: Admissions) -> None:
        self._gate, self._admissions = gate, admissions
        self._shared = gate.shared

    async def OpenSequence(
        self, request: sequence_pb2.OpenSequenceRequest, context: Context
    ) -> sequence_pb2.OpenSequenceResponse:
        self._gate.refuse_if_draining()
        token_ids, options = _prompt(request), self._options(request)

        sidecar = self._shared.sidecar

        def admit() -> AdmittedSequence:
            new = request.max_new_tokens
            if token_ids:
                return sidecar.admit_prompt(token_ids, new, tenant=request.tenant, **options)
            return sidecar.admit(request.prompt_tokens, new, **options)

        num_bytes = request.ByteSize() + _ID_BYTES * len(token_ids)
        opening = Opening(request.tenant, len(token_ids), num_bytes, admit)
        opened = await self._admissions.open(context, opening)
        return sequence_pb2.OpenSequenceResponse(
            sequence_id=opened.sequence, cached_tokens=opened.cached_tokens
        )

    async def ForkSequence(
        self, request: sequence_pb2.ForkSequenceRequest, context: Context
    ) -> sequence_pb2.ForkSequenceResponse:
        self._gate.refuse_if_draining()

        source, length, new = request.sequence_id, request.length_tokens, request.max_new_tokens

        def make_room(seconds: float) -> None:
            self._shared.sidecar.make_room_to_fork(length, new, seconds)

        def fork(caller: Client | None, _: None) -> int:
            return self._shared.fork_at_once(caller, source, length, new)

        halves = Halves(make_room, fork, undo=self._shared.close_sequence)
        child = await self._admissions.in_halves(context, source, halves)
        return sequence_pb2.ForkSequenceResponse(sequence_id=child)

    async def TruncateSequence(
        self, request: sequence_pb2.TruncateSequenceRequest, context: Context
    ) -> sequence_pb2.TruncateSequenceResponse:
        def truncate(caller: Client | None) -> None:
            self._shared.truncate(caller, request.sequence_id, request.length_tokens)

        await self._gate.call(context, truncate)
        return sequence_pb2.TruncateSequenceResponse()

    async def GetSequenceBytes(
        self, request: sequence_pb2.GetSequenceBytesRequest, context: Context
    ) -> sequence_pb2.GetSequenceBytesResponse:
        def tier_bytes(caller: Client | None) -> TierBytes:
            return self._shared.tier_bytes(caller, request.sequence_id)

        held = await self._gate.call(context, tier_bytes)
        return sequence_pb2.GetSequenceBytesResponse(held=encode_tier_bytes(held))

    async def PreemptSequence(
        self, request: sequence_pb2.PreemptSequenceRequest, context: Context
    ) -> sequence_pb2.PreemptSequenceResponse:
        def preempt(caller: Client | None) -> None:
            self._shared.preempt(caller, request.sequence_id)

        await self._gate.call(context, preempt)
        return sequence_pb2.PreemptSequenceResponse()

    async def ResumeSequence(
        self, request: sequence_pb2.ResumeSequenceRequest, context: Context
    ) -> sequence_pb2.ResumeSequenceResponse:
        self._gate.refuse_if_draining()

        sequence, sidecar = request.sequence_id, self._shared.sidecar

        def bring_back(seconds: float) -> Returning:
            return sidecar.bring_back(sequence, seconds)

        halves = Halves(bring_back, self._shared.finish_resume, release=sidecar.let_go)
        length = await self._admissions.in_halves(context, sequence, halves)
        return sequence_pb2.ResumeSequenceResponse(length_tokens=length)

    async def CloseSequence(
        self, request: sequence_pb2.CloseSequenceRequest, context: Context
    ) -> sequence_pb2.CloseSequenceResponse:
        def close(caller: Client | None) -> None:
            self._shared.close_sequence(caller, request.sequence_id)

        await self._gate.call(context, close)
        return sequence_pb2.CloseSequenceResponse()

    def _options(self, request: sequence_pb2.OpenSequenceRequest) -> OpenOptions:
        selection = self._shared.sidecar.config.selection
        if request.HasField("selection"):
            selection = decode_selection(request.selection, selection)
        return OpenOptions(
            selection=selection,
            hot_slots=request.hot_slots if request.HasField("hot_slots") else None,
            window_blocks=request.window_blocks if request.HasField("window_blocks") else None,
        )


def _prompt(request: sequence_pb2.OpenSequenceRequest) -> Sequence[int]:
    found = len(request.token_ids)
    if request.tenant and not found:
        raise InvalidArgument("a tenant is named and 0 token_ids are given, needs 1 or more")
    if found and request.prompt_tokens not in (0, found):
        raise InvalidArgument(f"prompt_tokens is {request.prompt_tokens}, {found} token_ids given")
    return request.token_ids
