"""StepService: steps and their layers."""

# ruff: noqa: D102, N802 - names and contracts of the methods are those of the proto

import asyncio
from typing import Any, cast

import grpc.aio

from hisparse_sidecar._proto.hisparse.v1 import step_pb2, step_pb2_grpc
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.server.clients import Client
from hisparse_sidecar.server.gate import Gate
from hisparse_sidecar.server.grpc_types import Context
from hisparse_sidecar.server.layer_tensors import run_layer
from hisparse_sidecar.server.response_writer import ResponseWriter
from hisparse_sidecar.step.step import StepKind
from hisparse_sidecar.wire.errors import status_of

_MAX_SEQUENCES = 4096
_CANCEL_NOTICE_SECONDS = 0.02
_KINDS: dict[step_pb2.StepKind, StepKind] = {
    step_pb2.STEP_KIND_DECODE: "decode",
    step_pb2.STEP_KIND_PREFILL: "prefill",
}


class StepServicer(step_pb2_grpc.StepServiceServicer):
    """See step.proto."""

    def __init__(self, gate: Gate, max_unread_seconds: float) -> None:
        self._gate = gate
        self._shared = gate.shared
        self._max_unread_seconds = max_unread_seconds

    async def BeginStep(
        self, request: step_pb2.BeginStepRequest, context: Context
    ) -> step_pb2.BeginStepResponse:
        self._gate.refuse_if_draining()
        kind, padded_rows = _kind(request), None
        if request.HasField("padded_rows"):
            padded_rows = request.padded_rows
        token_ids = list(request.token_ids) or None
        rows = [(member.sequence_id, member.num_rows) for member in request.rows]

        def begin(client: Client) -> int:
            return self._shared.begin_step(client, rows, kind, padded_rows, token_ids)

        def undo(client: Client, number: int) -> None:
            self._shared.abort_any_step(client)

        number = await self._gate.client_call(context, begin, undo)
        return step_pb2.BeginStepResponse(step_id=number)

    async def RunLayer(
        self, request: step_pb2.RunLayerRequest, context: Context
    ) -> step_pb2.RunLayerResponse:
        def run(client: Client) -> None:
            run_layer(self._shared, client, request)

        await self._gate.step_call(context, run)
        return step_pb2.RunLayerResponse()

    async def RunLayers(  # type: ignore[override] # reads and writes, where gRPC also iterates
        self, request_iterator: object, context: Context
    ) -> None:
        responses = ResponseWriter(context, self._max_unread_seconds)
        try:
            while (request := await self._next_request(context)) is not None:
                await responses.write(await self._answer(request, context))
        except BaseException:  # cancelled, not read, or gone: the step cannot go on over it
            self._gate.abort_step(context)
            raise

    async def EndStep(
        self, request: step_pb2.EndStepRequest, context: Context
    ) -> step_pb2.EndStepResponse:
        def end(client: Client) -> None:
            if _commits(request):
                self._shared.commit_step(client, request.step_id)
            else:
                self._shared.abort_step(client, request.step_id)

        await self._gate.client_call(context, end)
        return step_pb2.EndStepResponse()

    async def _next_request(self, context: Context) -> step_pb2.RunLayersRequest | None:
        request: Any = await self._gate.unless_streams_end(context.read())
        if request is not grpc.aio.EOF:  # type: ignore[attr-defined]
            return cast(step_pb2.RunLayersRequest, request)
        # reading a dropped stream may end as if the client had closed its side: gRPC cancels next
        await asyncio.sleep(_CANCEL_NOTICE_SECONDS)
        return None

    async def _answer(
        self, request: step_pb2.RunLayersRequest, context: Context
    ) -> step_pb2.RunLayersResponse:
        try:
            return step_pb2.RunLayersResponse(done=await self.RunLayer(request.layer, context))
        except Exception as error:  # the stream goes on: its status is not this layer's
            code, name, message = status_of(error)
            refusal = step_pb2.Refusal(status_code=code.value[0], error=name, message=message)
            return step_pb2.RunLayersResponse(refused=refusal)


def _kind(request: step_pb2.BeginStepRequest) -> StepKind:
    if len(request.rows) > _MAX_SEQUENCES:
        raise InvalidArgument(f"{len(request.rows)} sequences in a step, at most {_MAX_SEQUENCES}")
    if request.kind not in _KINDS:
        known = sorted(int(kind) for kind in _KINDS)
        raise InvalidArgument(f"kind is number {int(request.kind)}, needs one of {known}")
    return _KINDS[request.kind]


def _commits(request: step_pb2.EndStepRequest) -> bool:
    known = (step_pb2.STEP_OUTCOME_COMMIT, step_pb2.STEP_OUTCOME_ABORT)
    if request.outcome not in known:
        found, needed = int(request.outcome), [int(outcome) for outcome in known]
        raise InvalidArgument(f"outcome is number {found}, needs one of {needed}")
    return request.outcome == step_pb2.STEP_OUTCOME_COMMIT
