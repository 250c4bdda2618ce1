"""Suite `remote`: pages put and got by the remote tier, beside Mooncake's own client.

A master, an owner of the memory and the client run on this machine. Peers: `put` of bytes and
`put_from` registered memory; `get` to new bytes and `get_into` registered memory. Ours: `put`, also
of memory that the store may read; `read`, which gives the page where the store put it; `get`, which
copies it once more. Ours checks every byte and keeps a deadline; a short one takes another thread.
"""

from collections.abc import Iterator
from statistics import median

from benchmarks.ops.spread import ratio_spread
from benchmarks.remote.overhead import BATCH_PAGES, BatchContest, Contest, local_store
from hisparse_sidecar._core import InvalidArgument
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch
from hisparse_sidecar.remote.local_store import find_master

_PAGES_A_ROUND = {64 << 10: 400, 1 << 20: 60, 8 << 20: 8}  # bytes: pages of a round
_BATCHES_A_ROUND = {64 << 10: 50, 512 << 10: 10}
_MOST_BYTES = 8 << 20  # of a call
_PEERS = {
    "put": ("Mooncake put", "Mooncake put_from"),
    "put, short deadline": ("Mooncake put", "Mooncake put_from"),
    "read": ("Mooncake get", "Mooncake get_into"),
    "read, short deadline": ("Mooncake get", "Mooncake get_into"),
    "get": ("Mooncake get", "Mooncake get_into"),
    "put of shared memory": ("Mooncake put", "Mooncake put_from"),
    "put_many": ("Mooncake batch_put_from",),
    "read_many": ("Mooncake batch_get_into",),
}
_MOST_ROUNDS = 9


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    try:
        find_master()
    except InvalidArgument as error:
        yield Measurement("Mooncake", f"absent: {error}", 0.0, "higher")
        return
    rounds = min(stopwatch.num_runs, _MOST_ROUNDS)
    with local_store(_MOST_BYTES) as setting:
        for num_bytes, num_pages in _PAGES_A_ROUND.items():
            size = f"{num_bytes >> 10} KiB"
            if stopwatch.wants(size):
                seconds = Contest(setting, num_bytes).seconds(num_pages, rounds)
                yield from to_measurements(size, seconds)
        for num_bytes, num_batches in _BATCHES_A_ROUND.items():
            size = f"{BATCH_PAGES} of {num_bytes >> 10} KiB a call"
            if stopwatch.wants(size):
                seconds = BatchContest(setting, num_bytes).seconds(num_batches, rounds)
                yield from to_measurements(size, seconds)


def to_measurements(size: str, seconds: dict[str, list[float]]) -> Iterator[Measurement]:
    """Each of our sides beside each peer of the same direction; times are medians of rounds."""
    for name, ours in seconds.items():
        for peer in _PEERS.get(name, ()):
            case, spread = f"{name}, {size}", ratio_spread(ours, seconds[peer])
            ours_us, peer_us = (1e6 * median(side) for side in (ours, seconds[peer]))
            yield Measurement(case, "median us", ours_us, "lower", peer, peer_us, spread)


SUITE = Suite(
    name="remote",
    summary="the remote tier on Mooncake Store (us a page), beside Mooncake's own client",
    device="cpu",
    measure=_measure,
)
