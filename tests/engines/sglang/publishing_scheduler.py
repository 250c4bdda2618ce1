"""A process with a coordinator that tells: `python -m ...publishing_scheduler GRPC_PORT`.

It writes what it has told, as JSON, at the start and then for each line that it reads, before which
its requests decode.
"""

import json
import sys

from hisparse_sidecar.engines.sglang.offload import stats as offload_stats
from hisparse_sidecar.engines.sglang.offload.stats import StatsPublisher, folder_of
from tests.engines.sglang.offload_world import Engine
from tests.engines.sglang.on_the_cpu import sglang_on_the_cpu


def main(port: int) -> None:
    """Runs until its input ends."""
    offload_stats.TELL_SECONDS = 0.0
    listeners = (StatsPublisher(folder_of(port)),)
    engine = Engine(hot_share=0.08, listeners=listeners)  # two hot buffers
    engine.start(300, 200)
    engine.admit(engine.prefill(100))  # it waits
    while True:
        told = engine.coordinator.stats()
        engine.collect()  # begins with telling
        numbers = [told.steps, told.rows_asked, told.rows_missed, told.bytes_spilled]
        line = json.dumps({"numbers": numbers, "core": told.core.as_dict()})
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        if not sys.stdin.readline():
            break
        engine.decode(7)
    engine.coordinator.destroy()


if __name__ == "__main__":
    with sglang_on_the_cpu():
        main(int(sys.argv[1]))
