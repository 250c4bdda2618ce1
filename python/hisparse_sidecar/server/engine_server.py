"""A server that has no sidecar of its own, and shows what the processes of an engine tell."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hisparse_sidecar._proto.hisparse.v1 import sidecar_pb2, sidecar_pb2_grpc
from hisparse_sidecar.engine_stats import PublishedStats
from hisparse_sidecar.server.grpc_servers import tcp_server, unix_server
from hisparse_sidecar.server.grpc_types import Context
from hisparse_sidecar.server.options import ServerOptions
from hisparse_sidecar.server.server_info import bare_info
from hisparse_sidecar.server.socket_files import claimed, identity, remove_own
from hisparse_sidecar.wire.stats import encode_engine

_LAST_RESPONSES_SECONDS = 1.0
_SIDECAR = sidecar_pb2.DESCRIPTOR.services_by_name["SidecarService"].full_name
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class EngineStatsServicer(sidecar_pb2_grpc.SidecarServiceServicer):
    """See sidecar.proto; of the answers, what a server without a sidecar has."""

    def __init__(
        self,
        info: sidecar_pb2.GetServerInfoResponse,
        read_engines: Callable[[], Sequence[PublishedStats]],
    ) -> None:
        self._info, self._read_engines = info, read_engines

    async def GetServerInfo(  # noqa: N802
        self, request: sidecar_pb2.GetServerInfoRequest, context: Context
    ) -> sidecar_pb2.GetServerInfoResponse:
        """See sidecar.proto."""
        return self._info

    async def GetStats(  # noqa: N802
        self, request: sidecar_pb2.GetStatsRequest, context: Context
    ) -> sidecar_pb2.GetStatsResponse:
        """See sidecar.proto."""
        engines = await asyncio.to_thread(self._read_engines)
        return sidecar_pb2.GetStatsResponse(engines=map(encode_engine, engines))


class EngineServer:
    """`start`, then `stop`; in between it serves. Not to be used twice.

    Attributes:
        tcp_port: the TCP port, None without one.
    """

    def __init__(
        self, options: ServerOptions, read_engines: Callable[[], Sequence[PublishedStats]]
    ) -> None:
        """A server that does not serve yet.

        Args:
            options: where it listens; no client has anything that its limits could bound.
            read_engines: what the engine's processes tell; called in threads.
        """
        self._options, self._path = options, options.socket_path.absolute()
        self._stats = EngineStatsServicer(bare_info(options.limits), read_engines)
        self._ends = contextlib.AsyncExitStack()
        self._servers: list[grpc.aio.Server] = []
        self.tcp_port: int | None = None

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the statistics, health and reflection."""
        sidecar_pb2_grpc.add_SidecarServiceServicer_to_server(self._stats, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (_SIDECAR, _HEALTH, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)

    async def start(self) -> None:
        """Serves when it returns.

        Raises:
            WrongState: a live server has the socket.
            HisparseError: an address cannot be bound.
        """
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined] # no stubs
        try:
            self._bind()
            for server in self._servers:
                await server.start()
            await self._set_serving(True)
        except BaseException:
            await self._ends.aclose()
            raise

    async def stop(self) -> None:
        """Lets calls that run end within a second, and removes the socket."""
        await self._set_serving(False)
        grace = min(_LAST_RESPONSES_SECONDS, self._options.limits.drain_seconds)
        await asyncio.gather(*(server.stop(grace) for server in self._servers))
        await self._ends.aclose()

    def hurry(self) -> None:
        """Nothing that `stop` waits for takes long."""

    def _bind(self) -> None:
        limits, tcp = self._options.limits, self._options.tcp
        with claimed(self._path):
            self._add(unix_server(self._path, self, limits))
            self._ends.callback(remove_own, self._path, identity(self._path))
        if tcp is not None:
            server, self.tcp_port = tcp_server(tcp, self, limits)
            self._add(server)

    def _add(self, server: grpc.aio.Server) -> None:
        self._servers.append(server)
        self._ends.push_async_callback(server.stop, 0)

    async def _set_serving(self, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        for name in ("", _SIDECAR):
            await self._health.set(name, states.SERVING if serving else states.NOT_SERVING)
