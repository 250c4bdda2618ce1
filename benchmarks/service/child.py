"""A server whose file tier fails when told: SIGUSR1 begins it, SIGUSR2 ends it, SIGTERM drains.

`python -m benchmarks.service.child SOCKET SETTINGS`, which is JSON: "config", "quota_pages", and
"faults", what `FileTier.arm` is given, each with its "point".
"""

import asyncio
import json
import logging
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from hisparse_sidecar.config.file import build_config
from hisparse_sidecar.server.options import ServerOptions
from hisparse_sidecar.server.runtime import ServerRuntime
from hisparse_sidecar.sidecar import Sidecar


async def _serve(socket_path: Path, settings: dict[str, Any]) -> None:
    config = build_config(settings["config"])
    options = ServerOptions(socket_path, quota_pages=settings["quota_pages"])
    runtime, loop = ServerRuntime(config, options), asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    await runtime.start()
    tasks = set()

    def tell(faults: list[dict[str, Any]]) -> None:
        tasks.add(asyncio.ensure_future(runtime.call(partial(_set_faults, faults=faults))))

    loop.add_signal_handler(signal.SIGUSR1, tell, settings["faults"])
    loop.add_signal_handler(signal.SIGUSR2, tell, [])
    await ended.wait()
    await runtime.stop()


def _set_faults(sidecar: Sidecar, *, faults: list[dict[str, Any]]) -> None:
    files = sidecar._tiers.lower.files
    assert files is not None, "faults are of a file tier"
    files.disarm()
    for fault in faults:
        files.arm(**fault)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    asyncio.run(_serve(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
