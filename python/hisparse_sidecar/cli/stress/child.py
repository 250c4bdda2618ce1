"""The server's process: the real server on its sockets, and the probe beside it."""

import asyncio
import ctypes
import logging
import os
import signal
import time
from pathlib import Path

from hisparse_sidecar._core import FaultTier, MemoryTier
from hisparse_sidecar.cli.stress.probe import Probe
from hisparse_sidecar.cli.stress.settings import StressSettings
from hisparse_sidecar.cli.stress.world import QUOTA_PAGES, server_config
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.server.options import Limits, ServerOptions
from hisparse_sidecar.server.runtime import ServerRuntime
from hisparse_sidecar.sidecar import Sidecar

SOCKET, PROBE_SOCKET, LOG = "sidecar.sock", "probe.sock", "server.log"
_SET_PDEATHSIG = 1
_REMOTE_BYTES = 16 << 20  # with the other tiers less than the directory may know
# calls out of a million
_REMOTE_RATES = {
    "corrupt_read": 60_000,
    "corrupt_stored": 30_000,
    "error": 50_000,
    "hollow": 60_000,
    "short": 60_000,
    "slow": 60_000,
    "vanished": 60_000,
}


def serve(settings: StressSettings, directory: Path, generation: int) -> None:
    """Serves until SIGTERM, or for as long as its parent lives.

    Args:
        settings: of the run.
        directory: where the sockets and the tiers are.
        generation: how many servers there were before; its faults differ from theirs.
    """
    die_with_parent()
    log = os.open(directory / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(_serve(settings, directory, generation))


def die_with_parent() -> None:
    """The kernel kills this process once the one that made it is gone."""
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children in its own order


async def _serve(settings: StressSettings, directory: Path, generation: int) -> None:
    remote = _remote_tier(settings, generation)
    options = ServerOptions(
        directory / SOCKET,
        limits=Limits(max_step_idle_seconds=5.0, drain_seconds=10.0),
        quota_pages=QUOTA_PAGES,
    )
    took_ms = 0.0

    def make(config: SidecarConfig) -> Sidecar:
        nonlocal took_ms
        began = time.perf_counter()
        sidecar = Sidecar(config, remote_tier=remote)
        took_ms = 1e3 * (time.perf_counter() - began)
        return sidecar

    runtime = ServerRuntime(server_config(settings, directory), options, make_sidecar=make)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await runtime.start()
    probe_path = directory / PROBE_SOCKET
    probe_path.unlink(missing_ok=True)
    probe = await Probe(remote, took_ms).serve(runtime, probe_path)
    await stopped.wait()
    probe.close()  # from Python 3.12 on, to wait for it would be to wait for the driver to hang up
    await runtime.stop()


def _remote_tier(settings: StressSettings, generation: int) -> FaultTier | None:
    if "remote" not in settings.tiers:
        return None
    rates = _REMOTE_RATES if "remote" in settings.faults else {}
    seed = settings.seed * 1000 + generation
    store = MemoryTier(_REMOTE_BYTES)
    return FaultTier(store, seed=seed, by_identity=False, delay_seconds=0.1, **rates)
