"""Snapshots for tests: every number another one."""

import subprocess
import sys
from itertools import count
from pathlib import Path

from hisparse_sidecar._core import Stats
from hisparse_sidecar.engine_stats import EngineRequests, EngineStats, SelectionCalls
from hisparse_sidecar.stats import GroupTraffic, SelectionCounts, TierBytes, Traffic

_CORE = [name for name in dir(Stats) if name[0] != "_" and not callable(getattr(Stats, name))]


def make_stats(first: int = 1, *, rank: int = 0) -> EngineStats:
    """Numbers count from `first`."""
    numbers = count(first)

    def some(how_many: int) -> list[int]:
        return [next(numbers) for _ in range(how_many)]

    def group() -> GroupTraffic:
        rows, blocks, prefill = (Traffic(*some(4)) for _ in range(3))
        return GroupTraffic(rows, blocks, prefill, *some(2), SelectionCounts(*some(8)))

    return EngineStats(
        engine="sglang 0.5.23",
        rank=rank,
        core=Stats.from_dict(dict(zip(_CORE, some(len(_CORE)), strict=True))),
        groups=(group(), group()),
        held=TierBytes(*some(6)),
        steps=next(numbers),
        refused=next(numbers),
        requests=EngineRequests(*some(3)),
        prompt_rows_total=next(numbers),
        prompt_rows_free=next(numbers),
        selections=(SelectionCalls("paged", "selected", next(numbers)),),
    )


def plain(stats: EngineStats) -> dict[str, object]:
    """A snapshot that can be compared, also with one that came over the wire."""
    core = stats.core.as_dict() if isinstance(stats.core, Stats) else vars(stats.core)
    return vars(stats) | {"core": core}


_WRITER = """
import sys
from pathlib import Path
from hisparse_sidecar.engine_stats import StatsFolder
from tests.engine_stats.snapshots import make_stats

path, rank = Path(sys.argv[1]), int(sys.argv[2])
folder = StatsFolder(path.name, path.parent.parent)
folder.publish(make_stats(rank=rank))
print("published", flush=True)
for number in range(10**9):
    if sys.argv[3] == "once":
        sys.stdin.read()
    folder.publish(make_stats(number, rank=rank))
"""


def start_writer(path: Path, rank: int = 0, *, times: str = "once") -> subprocess.Popen[str]:
    """A process that has published in the folder `path`, and lives until it is killed."""
    command = [sys.executable, "-c", _WRITER, str(path), str(rank), times]
    pipe = subprocess.PIPE
    made = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert made.stdout is not None
    assert made.stdout.readline() == "published\n"
    return made


def kill(process: subprocess.Popen[str]) -> None:
    """Ends a writer as a crash does."""
    process.kill()
    process.communicate()
