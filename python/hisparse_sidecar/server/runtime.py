"""One server from its sockets to its end, in the event loop that runs it."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import grpc.aio

from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.engine_stats import PublishedStats
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.server.admissions import Admissions
from hisparse_sidecar.server.clients import Clients
from hisparse_sidecar.server.free_memory import keep_returning_memory
from hisparse_sidecar.server.gate import Gate, StepEnds
from hisparse_sidecar.server.grpc_servers import Servicers, tcp_server, unix_server
from hisparse_sidecar.server.liveness import Liveness
from hisparse_sidecar.server.options import ServerOptions
from hisparse_sidecar.server.refusal_pace import Pace, RefusalPace
from hisparse_sidecar.server.server_info import server_info
from hisparse_sidecar.server.shared_sidecar import SharedSidecar
from hisparse_sidecar.server.side_socket import SideSocket
from hisparse_sidecar.server.socket_files import claimed, identity, remove_own
from hisparse_sidecar.server.worker import Worker
from hisparse_sidecar.sidecar import Sidecar
from hisparse_sidecar.wire.names import side_socket_path

_Result = TypeVar("_Result")
_LOG = logging.getLogger(__name__)
_DRAIN_POLL_SECONDS = 0.02
_OPENERS = 64  # openings that wait for lower tiers at a time; others wait behind them
_LAST_RESPONSES_SECONDS = 1.0


class ServerRuntime:
    """`start`, then `stop`; in between it serves. Not to be used twice."""

    def __init__(
        self,
        config: SidecarConfig,
        options: ServerOptions,
        *,
        make_sidecar: Callable[[SidecarConfig], Sidecar] = Sidecar,
        read_engines: Callable[[], Sequence[PublishedStats]] = tuple,
    ) -> None:
        """A server that does not serve yet.

        Args:
            config: of its sidecar.
            options: where it listens, and for whom.
            make_sidecar: makes the sidecar.
            read_engines: what the processes of an engine tell; called in threads.
        """
        self._config = config
        self._make_sidecar, self._read_engines = make_sidecar, read_engines
        self._options = options
        self._socket_path = options.socket_path.absolute()
        self._side_path = Path(side_socket_path(str(self._socket_path)))
        self._worker = Worker()
        self._openers = Worker("hisparse-open", _OPENERS)
        self._servers: list[grpc.aio.Server] = []
        self._bound: dict[Path, tuple[int, int]] = {}
        self._ends = contextlib.AsyncExitStack()
        self._hurry = asyncio.Event()
        self.tcp_port: int | None = None

    async def start(self) -> None:
        """Serves when it returns; health says NOT_SERVING until then.

        Raises:
            WrongState: a live server has the socket.
            HisparseError: the sidecar cannot be made, or an address not be bound.
        """
        try:
            await self._start()
        except BaseException:
            await self._ends.aclose()
            raise

    async def _start(self) -> None:
        self._ends.callback(self._worker.close)
        step_ends, limits = StepEnds(), self._options.limits
        sidecar = await self._worker.run(lambda: self._make_sidecar(self._config))
        self._shared = SharedSidecar(sidecar, Clients(limits), step_ends.notify)
        self._ends.push_async_callback(self._worker.run, self._shared.close)
        self._ends.push_async_callback(asyncio.to_thread, self._openers.close)
        for tenant, pages in self._options.quota_pages.items():
            self._shared.add_tenant(tenant, pages)
        liveness = Liveness(limits.max_silent_seconds)
        self._gate = Gate(self._shared, self._worker, step_ends, liveness)
        pace = Pace(limits.refusals_per_second, max_seconds=limits.longest_refusal_seconds)
        self._admissions = Admissions(self._gate, self._openers, RefusalPace(pace))
        told = server_info(self._config, limits)
        self._servicers = Servicers(self._gate, self._admissions, told, limits, self._read_engines)
        await self._servicers.set_serving(False)
        self._bind()
        for server in self._servers:
            await server.start()
        self._side.start(self._gate)
        self._checks = [
            asyncio.ensure_future(self._abort_idle_steps()),
            asyncio.ensure_future(_end_silent_clients(liveness)),
            asyncio.ensure_future(keep_returning_memory()),
        ]
        for check in self._checks:
            self._ends.callback(check.cancel)
        await self._servicers.set_serving(True)

    def _bind(self) -> None:
        limits, tcp = self._options.limits, self._options.tcp
        self._ends.callback(self._remove_sockets)
        with claimed(self._socket_path, self._side_path):
            self._add_server(unix_server(self._socket_path, self._servicers, limits))
            self._bound[self._socket_path] = identity(self._socket_path)
            self._side = SideSocket(self._side_path)
            self._bound[self._side_path] = identity(self._side_path)
        self._ends.push_async_callback(self._side.stop)
        if tcp is not None:
            server, self.tcp_port = tcp_server(tcp, self._servicers, limits)
            self._add_server(server)

    def _add_server(self, server: grpc.aio.Server) -> None:
        self._servers.append(server)
        self._ends.push_async_callback(server.stop, 0)

    async def stop(self, drain_seconds: float | None = None) -> None:
        """Drains, frees everything and removes the sockets.

        Health flips first; nothing new begins; open steps and running calls may end within the
        time. Then no sequence is left, and what the tiers below the host pool are to keep goes
        there within what is left of the time. `hurry` cuts every wait short.

        Args:
            drain_seconds: default: that of the limits.
        """
        seconds = self._options.limits.drain_seconds if drain_seconds is None else drain_seconds
        deadline = asyncio.get_running_loop().time() + seconds
        await self._servicers.set_serving(False)
        self._gate.draining.set()
        self._admissions.refusals.end()
        await self._wait_while(self._shared.has_open_step, deadline)
        self._gate.streams_end.set()
        await self._wait_while(lambda: self._gate.num_calls > 0, deadline)
        self._gate.closed.set()
        await self._save_pages(deadline)
        await self._stop_servers(deadline)
        await self._ends.aclose()

    async def call(self, call: Callable[[Sidecar], _Result]) -> _Result:
        """`call(sidecar)` in the thread that all calls share, between two of them."""
        return await self._worker.run(lambda: call(self._shared.sidecar))

    def hurry(self) -> None:
        """Makes a `stop` that waits go on at once."""
        self._hurry.set()

    async def _wait_while(self, condition: Callable[[], bool], deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while condition() and loop.time() < deadline and not self._hurry.is_set():
            await asyncio.sleep(_DRAIN_POLL_SECONDS)

    async def _save_pages(self, deadline: float) -> None:
        seconds = deadline - asyncio.get_running_loop().time()
        if seconds <= 0 or self._hurry.is_set():
            return
        try:
            freed, left = await self._worker.run(lambda: self._shared.drain(seconds))
            _LOG.info("drained: %d pages have left the host pool, %d stay in it", freed, left)
        except HisparseError as error:  # a tier is down, or slow
            _LOG.warning("not every page was saved: %s", error)

    async def _stop_servers(self, deadline: float) -> None:
        # no call runs any more: what is left is on its way to a client, or not wanted by it
        left_seconds = deadline - asyncio.get_running_loop().time()
        grace = min(max(0.0, left_seconds), _LAST_RESPONSES_SECONDS)
        stopping = [asyncio.ensure_future(server.stop(grace)) for server in self._servers]
        hurried = asyncio.ensure_future(self._hurry.wait())
        stopped = asyncio.gather(*stopping)
        await asyncio.wait((stopped, hurried), return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not stopped.done():
            await asyncio.gather(*(server.stop(0) for server in self._servers))
        await stopped

    async def _abort_idle_steps(self) -> None:
        limit = self._options.limits.max_step_idle_seconds
        while True:
            await asyncio.sleep(limit / 4)
            await self._worker.run(lambda: self._shared.abort_idle_step(limit))

    def _remove_sockets(self) -> None:
        for path, bound in self._bound.items():
            remove_own(path, bound)


async def _end_silent_clients(liveness: Liveness) -> None:
    while True:
        await asyncio.sleep(liveness.scan_seconds)
        liveness.end_silent()
