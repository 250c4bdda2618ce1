"""The gRPC servers: one on the Unix socket, and one on TCP where that is asked for."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hisparse_sidecar._proto.hisparse.v1 import (
    region_pb2,
    region_pb2_grpc,
    sequence_pb2,
    sequence_pb2_grpc,
    sidecar_pb2,
    sidecar_pb2_grpc,
    step_pb2,
    step_pb2_grpc,
)
from hisparse_sidecar.engine_stats import PublishedStats
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.server.admissions import Admissions
from hisparse_sidecar.server.gate import Gate
from hisparse_sidecar.server.grpc_types import Context
from hisparse_sidecar.server.options import Limits, TcpOptions
from hisparse_sidecar.server.services.region_service import RegionServicer
from hisparse_sidecar.server.services.sequence_service import SequenceServicer
from hisparse_sidecar.server.services.sidecar_service import SidecarServicer
from hisparse_sidecar.server.services.step_service import StepServicer
from hisparse_sidecar.server.status_interceptor import StatusInterceptor
from hisparse_sidecar.server.token_interceptor import TokenInterceptor
from hisparse_sidecar.wire.errors import Draining

SERVICES: tuple[str, ...] = tuple(
    service.full_name
    for file in (region_pb2, sequence_pb2, sidecar_pb2, step_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)


class HealthServicer(health.aio.HealthServicer):  # type: ignore[misc, name-defined] # no stubs
    """Ends its watches when the server ends its streams: a watcher must not hold up a drain."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        """See health.proto of gRPC."""
        with suppress(Draining):
            await self._gate.unless_streams_end(super().Watch(request, context))


class Registers(Protocol):
    """What a server serves."""

    def add_to(self, server: grpc.aio.Server) -> None: ...  # noqa: D102


class Servicers:
    """What a server of a sidecar serves."""

    def __init__(
        self,
        gate: Gate,
        admissions: Admissions,
        server_info: sidecar_pb2.GetServerInfoResponse,
        limits: Limits,
        read_engines: Callable[[], Sequence[PublishedStats]],
    ) -> None:
        self._region = RegionServicer(gate)
        self._sequence = SequenceServicer(gate, admissions)
        self._step = StepServicer(gate, limits.max_unread_seconds)
        self._sidecar = SidecarServicer(gate, server_info, read_engines)
        self._health = HealthServicer(gate)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers every service, health and reflection."""
        region_pb2_grpc.add_RegionServiceServicer_to_server(self._region, server)
        sequence_pb2_grpc.add_SequenceServiceServicer_to_server(self._sequence, server)
        step_pb2_grpc.add_StepServiceServicer_to_server(self._step, server)
        sidecar_pb2_grpc.add_SidecarServiceServicer_to_server(self._sidecar, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        names = (*SERVICES, health_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)

    async def set_serving(self, serving: bool) -> None:
        """What health answers, for the server and for each service."""
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if serving else states.NOT_SERVING
        for name in ("", *SERVICES):
            await self._health.set(name, state)


def unix_server(path: Path, servicers: Registers, limits: Limits) -> grpc.aio.Server:
    """A server bound to the Unix socket `path`, which must be free; it does not serve yet."""
    server = _server(servicers, limits, [])
    if server.add_insecure_port(f"unix:{path}") == 0:
        raise HisparseError(f"cannot bind the Unix socket {path}")
    return server


def tcp_server(
    tcp: TcpOptions, servicers: Registers, limits: Limits
) -> tuple[grpc.aio.Server, int]:
    """A server bound to a TCP address, and its port; it does not serve yet."""
    tokens = [TokenInterceptor(tcp.token)] if tcp.token is not None else []
    server = _server(servicers, limits, tokens)
    credentials = tcp.credentials()
    try:
        if credentials is None:
            port = server.add_insecure_port(tcp.address)
        else:
            port = server.add_secure_port(tcp.address, credentials)
    except RuntimeError as error:
        raise HisparseError(f"cannot bind {tcp.address}: {error}") from None
    return server, port


def _server(servicers: Registers, limits: Limits, first: list[TokenInterceptor]) -> grpc.aio.Server:
    server = grpc.aio.server(
        interceptors=[*first, StatusInterceptor(limits.max_call_seconds, limits.retry_seconds)],
        options=[
            ("grpc.max_receive_message_length", limits.max_message_bytes),
            ("grpc.max_send_message_length", limits.max_message_bytes),
            ("grpc.max_metadata_size", limits.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
            ("grpc.max_concurrent_streams", limits.max_concurrent_streams),
            ("grpc.http2.bdp_probe", 0),  # a fast socket must not earn a sender a larger buffer
            ("grpc.http2.lookahead_bytes", limits.stream_buffer_bytes),
            ("grpc.so_reuseport", 0),  # a port in use is refused, not shared
        ],
    )
    servicers.add_to(server)
    return server
