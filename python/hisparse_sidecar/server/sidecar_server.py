"""A server inside another program: its event loop runs in a thread of its own."""

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path

from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.server.options import Limits, ServerOptions, TcpOptions
from hisparse_sidecar.server.runtime import ServerRuntime


class SidecarServer:
    """Serves a sidecar on a Unix socket; also a context manager.

    Attributes:
        socket_path: where it listens.
        tcp_port: the TCP port, None without one.
    """

    def __init__(
        self,
        config: SidecarConfig,
        socket_path: str | Path,
        *,
        tcp: TcpOptions | None = None,
        limits: Limits | None = None,
        quota_pages: Mapping[str, int] | None = None,
    ) -> None:
        self.socket_path = Path(socket_path)
        self.tcp_port: int | None = None
        self._config = config
        self._options = ServerOptions(self.socket_path, tcp, limits or Limits(), quota_pages or {})
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Serves when it returns; the errors are those of `ServerRuntime.start`."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="hisparse-server", daemon=True)
        thread.start()
        self._loop, self._thread = loop, thread
        try:
            asyncio.run_coroutine_threadsafe(self._start(), loop).result()
        except BaseException:
            self._end_loop()
            raise

    def stop(self, drain_seconds: float | None = None) -> None:
        """Drains and ends, see `ServerRuntime.stop`; legal when stopped already."""
        if self._loop is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._runtime.stop(drain_seconds), self._loop).result()
        finally:
            self._end_loop()

    async def _start(self) -> None:
        self._runtime = ServerRuntime(self._config, self._options)
        await self._runtime.start()
        self.tcp_port = self._runtime.tcp_port

    def _end_loop(self) -> None:
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        assert loop is not None
        assert thread is not None
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def __enter__(self) -> "SidecarServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
