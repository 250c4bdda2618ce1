"""A server in a process of its own, in a folder that goes with it."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.programs import command_of, environment
from hisparse_sidecar.cli.stress.footprint import footprint
from hisparse_sidecar.config import ModelShape, SidecarConfig, TiersConfig

_START_SECONDS, _END_SECONDS = 120.0, 120.0
_POLL_SECONDS = 0.01
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_SERVING = health_pb2.HealthCheckResponse.SERVING


class Server:
    """Serves from `start` until `end`; may be started again on the same folder.

    Attributes:
        socket_path: where clients find it.
    """

    def __init__(
        self,
        folder: Path,
        config: SidecarConfig,
        quota_pages: Mapping[str, int],
        faults: Sequence[dict[str, Any]],
    ) -> None:
        self.socket_path = folder / "s"
        self._settings = folder / "settings.json"
        self._log = folder / "log"
        settings = {"config": asdict(config), "quota_pages": dict(quota_pages)}
        self._settings.write_text(json.dumps({**settings, "faults": list(faults)}))

    def start(self) -> None:
        """Starts it and waits until it serves.

        Raises:
            OSError: it ended instead, or does not serve in time.
        """
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                command_of("benchmarks.service.child", self.socket_path, self._settings),
                env=environment(),
                stderr=log,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self.is_serving():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"the server does not start: {self._log.read_text()[-2000:]}")
            time.sleep(_POLL_SECONDS)

    def is_serving(self) -> bool:
        """What its health says."""
        with grpc.insecure_channel(f"unix:{self.socket_path}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            with suppress(grpc.RpcError):
                return bool(check(health_pb2.HealthCheckRequest(), timeout=5.0).status == _SERVING)
        return False

    @property
    def rss_bytes(self) -> int:
        """Resident memory of its process."""
        return footprint(self._process.pid).rss_bytes

    @property
    def cpu_seconds(self) -> float:
        """That its process has taken so far, in all its threads."""
        text = Path(f"/proc/{self._process.pid}/stat").read_text()
        fields = text[text.rindex(")") + 2 :].split()  # from the third on, of proc(5)
        return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND

    def tell(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def wait(self) -> None:
        """Waits for its end.

        Raises:
            OSError: it did not end with 0.
        """
        code = self._process.wait(_END_SECONDS)
        if code != 0:
            raise OSError(f"the server ended with {code}: {self._log.read_text()[-2000:]}")

    def end(self) -> None:
        """Lets it drain and end."""
        self.tell(signal.SIGTERM)
        self.wait()

    def kill(self) -> None:
        """Ends it in any case."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@contextmanager
def server_of(
    config: SidecarConfig,
    *,
    files: Mapping[str, Any] | None = None,
    quota_pages: Mapping[str, int] | None = None,
    faults: Sequence[dict[str, Any]] = (),
) -> Iterator[Server]:
    """A server that serves.

    Args:
        config: without lower tiers.
        files: settings of its file tier; None = there is none.
        quota_pages: of its tenants.
        faults: of its files, begun by SIGUSR1.
    """
    with tempfile.TemporaryDirectory(prefix="hisparse-service-") as name:
        folder = Path(name)
        if files is not None:
            tiers = TiersConfig(
                **{
                    "file_directory": str(folder / "pages"),
                    "file_bytes": 8 << 30,
                    "model_name": "service",
                    "probe_seconds": 0.0,  # what is there is loaded
                    **files,
                }
            )
            config = SidecarConfig(**{**vars(config), "tiers": tiers})
        server = Server(folder, config, quota_pages or {}, faults)
        server.start()
        try:
            yield server
        finally:
            server.kill()


def service_config(host_pages: int, max_sequences: int, **changes: Any) -> SidecarConfig:  # noqa: ANN401
    """One small layer: what is measured is no attention."""
    settings = {
        "model": ModelShape(1, (0,), 1, 8, 1.0),
        "host_pages": host_pages,
        "max_sequences": max_sequences,
        "kv_layout": "fp8",
        "backend": "reference",
        "hot_slots": 8,
        "window_blocks": 2,
        **changes,
    }
    return SidecarConfig(**settings)
