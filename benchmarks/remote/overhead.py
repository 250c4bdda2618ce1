"""What the remote tier adds to Mooncake's own client: `python -m benchmarks.remote.overhead`.

One line of JSON a call and size. Both sides use the same client, in turns and in the same run, and
every byte goes over loopback to a second process. Peers: `put` of bytes, `get` to new bytes, and
`get_into` of registered memory. Ours: `put`; `read`, which gives the page where the store put it;
`get`, which copies it once more. Ours checks the bytes and keeps a deadline; the peer does neither.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hisparse_sidecar.remote import MooncakeOptions, MooncakeTier
from hisparse_sidecar.remote.local_store import LocalMaster, LocalOwner
from hisparse_sidecar.remote.object_store import open_store

SEGMENT_BYTES = 512 << 20
SIZES = {64 << 10: 400, 1 << 20: 120, 8 << 20: 24}  # bytes -> pages of a round
NUM_ROUNDS = 5
SECONDS = 30.0


@dataclass(frozen=True)
class Side:
    """The calls of one side, by the number of the page; each is timed."""

    name: str
    call: str
    run: Callable[[int], object]


class Bench:
    """One size: pages of random bytes, put and got by both sides."""

    def __init__(self, store: Any, tier: MooncakeTier, num_bytes: int) -> None:  # noqa: ANN401
        self._store, self._tier, self._num_bytes = store, tier, num_bytes
        self._page = np.random.default_rng(0).integers(0, 256, num_bytes, np.uint8).tobytes()
        self._into = bytearray(num_bytes)
        self._registered = np.zeros(num_bytes, np.uint8)
        if store.register_buffer(self._registered.ctypes.data, num_bytes) != 0:
            raise RuntimeError("the client registers no memory")

    def measure(self, num_pages: int) -> dict[tuple[str, str], list[float]]:
        """Seconds of every call, by (call, side), over all rounds; the first round warms up."""
        seconds: dict[tuple[str, str], list[float]] = {}
        for round_number in range(NUM_ROUNDS + 1):
            for sides in self._phases():
                for page in range(num_pages):
                    turn = page % len(sides)
                    for side in (*sides[turn:], *sides[:turn]):
                        took = _time(side.run, page)
                        if round_number:
                            seconds.setdefault((side.call, side.name), []).append(took)
            self._remove_all(num_pages)
        return seconds

    def _phases(self) -> list[list[Side]]:
        puts = [Side("peer put", "put", self._peer_put), Side("ours put", "put", self._put)]
        gets = [
            Side("peer get", "get", self._peer_get),
            Side("peer get_into", "get", self._peer_get_into),
            Side("ours read", "get", self._read),
            Side("ours get", "get", self._get),
        ]
        return [puts, gets]

    def _peer_put(self, page: int) -> None:
        _need(self._store.put(f"peer{page}", self._page) == 0)

    def _peer_get(self, page: int) -> None:
        _need(len(self._store.get(f"peer{page}")) == self._num_bytes)

    def _peer_get_into(self, page: int) -> None:
        address = self._registered.ctypes.data
        found = self._store.get_into(f"peer{page}", address, self._num_bytes)
        _need(found == self._num_bytes)

    def _put(self, page: int) -> None:
        self._tier.put(_identity(page), self._page, num_tokens=64, deadline_seconds=SECONDS)

    def _read(self, page: int) -> None:
        reading = self._tier.read(_identity(page), self._num_bytes, deadline_seconds=SECONDS)
        with reading as found:
            _need(found is not None)

    def _get(self, page: int) -> None:
        _need(self._tier.get(_identity(page), self._into, deadline_seconds=SECONDS))

    def _remove_all(self, num_pages: int) -> None:
        for page in range(num_pages):
            self._store.remove(f"peer{page}", True)
            self._tier.remove(_identity(page), deadline_seconds=SECONDS)


def _identity(page: int) -> bytes:
    return page.to_bytes(32, "little")


def _need(is_right: bool) -> None:
    if not is_right:
        raise RuntimeError("a call did not do what it is timed for")


def _time(run: Callable[[int], object], page: int) -> float:
    start = time.perf_counter()
    run(page)
    return time.perf_counter() - start


def _rows(num_bytes: int, seconds: dict[tuple[str, str], list[float]]) -> list[dict[str, object]]:
    peers = {"put": "peer put", "get": "peer get"}
    rows: list[dict[str, object]] = []
    for (call, side), taken in seconds.items():
        median = statistics.median(taken)
        overhead = median / statistics.median(seconds[call, peers[call]]) - 1
        row = {"bytes": num_bytes, "side": side, "calls": len(taken)}
        row |= {
            "median_us": round(median * 1e6, 1),
            "mean_us": round(statistics.fmean(taken) * 1e6, 1),
        }
        p99 = statistics.quantiles(taken, n=100)[-1]
        rows.append(row | {"p99_us": round(p99 * 1e6, 1), "overhead": round(overhead, 3)})
    return rows


def main() -> None:
    """Measures every size and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--master", help="host:port of a running store; else one on loopback")
    master = parser.parse_args().master
    processes: list[LocalMaster | LocalOwner] = []
    if master is None:
        local = LocalMaster()
        local.start()
        master = local.address
        processes = [LocalOwner(master, SEGMENT_BYTES), local]
    options = MooncakeOptions(master, max_page_bytes=max(SIZES), staging_bytes=64 << 20)
    store = open_store(options)
    with MooncakeTier(store, options) as tier:
        for num_bytes, num_pages in SIZES.items():
            for row in _rows(num_bytes, Bench(store, tier, num_bytes).measure(num_pages)):
                print(json.dumps(row), flush=True)
    for process in processes:
        process.kill()


if __name__ == "__main__":
    main()
