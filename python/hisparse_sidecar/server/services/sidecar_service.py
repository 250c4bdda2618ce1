"""SidecarService: what the server is and what it holds."""

# ruff: noqa: D102, N802 - names and contracts of the methods are those of the proto

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from hisparse_sidecar._proto.hisparse.v1 import sidecar_pb2, sidecar_pb2_grpc
from hisparse_sidecar.engine_stats import PublishedStats
from hisparse_sidecar.server.gate import Gate, client_token
from hisparse_sidecar.server.grpc_types import Context
from hisparse_sidecar.wire.stats import encode_stats


class SidecarServicer(sidecar_pb2_grpc.SidecarServiceServicer):
    """See sidecar.proto."""

    def __init__(
        self,
        gate: Gate,
        server_info: sidecar_pb2.GetServerInfoResponse,
        read_engines: Callable[[], Sequence[PublishedStats]],
    ) -> None:
        self._gate = gate
        self._server_info, self._read_engines = server_info, read_engines

    async def GetServerInfo(
        self, request: sidecar_pb2.GetServerInfoRequest, context: Context
    ) -> sidecar_pb2.GetServerInfoResponse:
        self._gate.liveness.heard(client_token(context))
        return self._server_info

    async def GetStats(
        self, request: sidecar_pb2.GetStatsRequest, context: Context
    ) -> sidecar_pb2.GetStatsResponse:
        shared, ended = self._gate.shared, self._gate.liveness.ended
        found = await self._gate.snapshot(context, lambda: shared.stats(ended))
        engines = await asyncio.to_thread(self._read_engines)
        return encode_stats(replace(found, engines=engines))
