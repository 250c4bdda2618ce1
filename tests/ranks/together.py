"""Several ranks in this process, each joined by a thread."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from hisparse_sidecar._core import HostRegion, MemoryTier
from hisparse_sidecar.ranks import RankPlace, RankShare
from tests.pipeline.world import small_config
from tests.ranks.processes import share_of

SECONDS = 20.0

STARTED: list[RankShare] = []


def share(place: RankPlace) -> tuple[RankShare, HostRegion]:
    """This rank's share, with room below the host pool; the test's end leaves it."""
    joined = share_of(place, small_config(), lower=MemoryTier(1 << 24))
    STARTED.append(joined[0])
    return joined


def together(path: Path, num_ranks: int = 2) -> list[tuple[RankShare, HostRegion]]:
    """Every rank's share, all in this process."""
    with ThreadPoolExecutor(num_ranks) as threads:
        joining = [joins(threads, path, rank, num_ranks) for rank in range(num_ranks)]
        return [one.result(SECONDS) for one in joining]


def joins(
    threads: ThreadPoolExecutor, path: Path, rank: int, num_ranks: int = 2, seconds: float = SECONDS
) -> Future[tuple[RankShare, HostRegion]]:
    return threads.submit(share, RankPlace(rank, num_ranks, path, SECONDS, seconds))


def on_each(shares: list[RankShare], call: Callable[[RankShare], object]) -> list[object]:
    """The call by every rank at once; what each returned."""
    with ThreadPoolExecutor(len(shares)) as threads:
        return list(threads.map(call, shares))
