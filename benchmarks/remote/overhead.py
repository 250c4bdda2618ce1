"""Times of one page size on both sides of the suite `remote`: Mooncake's own client, and the tier.

Both use the same client, in turns and in the same run, and every byte goes over loopback to a
second process. Ours checks every byte and keeps a deadline; the peer does neither.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

import numpy as np

from hisparse_sidecar.remote import MooncakeOptions, MooncakeTier, Page
from hisparse_sidecar.remote.frame import FRAME_BYTES
from hisparse_sidecar.remote.local_store import LocalMaster, LocalOwner
from hisparse_sidecar.remote.object_store import LONGEST_CALL_SECONDS, open_store

SEGMENT_BYTES = 512 << 20
# with this much time a call is made by its caller, with less by a thread that it may be left to
LONG_SECONDS, SHORT_SECONDS = 30.0, LONGEST_CALL_SECONDS / 2
BATCH_PAGES = 16
_SHARED_FROM = 1 << 20  # numbers of the pages that are put from where they lie

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Setting:
    """A store on this machine: its client, a tier on it, random bytes that the client may use."""

    store: Any  # it has more calls than the tier uses
    tier: MooncakeTier
    memory: Bytes


@dataclass(frozen=True)
class Side:
    """One way to move a page, by the number of the page."""

    name: str
    run: Callable[[int], object]


class Contest:
    """One size: pages of random bytes, put and got by every side in turn."""

    def __init__(self, setting: Setting, num_bytes: int) -> None:
        self._store, self._tier, self._num_bytes = setting.store, setting.tier, num_bytes
        self._address = setting.memory.ctypes.data
        self._shared = setting.memory.data[:num_bytes]
        self._page = self._shared.tobytes()
        self._into = bytearray(num_bytes)

    def seconds(self, num_pages: int, num_rounds: int) -> dict[str, list[float]]:
        """The median of each round, by side; a round before the first warms up."""
        medians: dict[str, list[float]] = {}
        for round_number in range(num_rounds + 1):
            for sides in (self._puts(), self._gets()):
                for name, taken in _take_turns(sides, num_pages).items():
                    if round_number:
                        medians.setdefault(name, []).append(median(taken))
            self._remove_all(2 * num_pages)
        return medians

    def _puts(self) -> list[Side]:
        return [
            Side("Mooncake put", self._peer_put),
            Side("Mooncake put_from", self._peer_put_from),
            Side("put", lambda page: self._put(2 * page, LONG_SECONDS)),
            Side("put, short deadline", lambda page: self._put(2 * page + 1, SHORT_SECONDS)),
            Side("put of shared memory", self._put_shared),
        ]

    def _gets(self) -> list[Side]:
        return [
            Side("Mooncake get", self._peer_get),
            Side("Mooncake get_into", self._peer_get_into),
            Side("read", lambda page: self._read(2 * page, LONG_SECONDS)),
            Side("read, short deadline", lambda page: self._read(2 * page + 1, SHORT_SECONDS)),
            Side("get", self._get),
        ]

    def _peer_put(self, page: int) -> None:
        _need(self._store.put(f"peer{2 * page}", self._page) == 0)

    def _peer_put_from(self, page: int) -> None:
        key = f"peer{2 * page + 1}"
        _need(self._store.put_from(key, self._address, self._num_bytes) == 0)

    def _peer_get(self, page: int) -> None:
        _need(len(self._store.get(f"peer{2 * page}")) == self._num_bytes)

    def _peer_get_into(self, page: int) -> None:
        found = self._store.get_into(f"peer{2 * page + 1}", self._address, self._num_bytes)
        _need(found == self._num_bytes)

    def _put(self, page: int, seconds: float) -> None:
        self._tier.put(_identity(page), self._page, num_tokens=64, deadline_seconds=seconds)

    def _put_shared(self, page: int) -> None:
        name = _identity(_SHARED_FROM + page)
        self._tier.put(name, self._shared, num_tokens=64, deadline_seconds=LONG_SECONDS)

    def _read(self, page: int, seconds: float) -> None:
        reading = self._tier.read(_identity(page), self._num_bytes, deadline_seconds=seconds)
        with reading as found:
            _need(found is not None)

    def _get(self, page: int) -> None:
        _need(self._tier.get(_identity(2 * page), self._into, deadline_seconds=LONG_SECONDS))

    def _remove_all(self, num_pages: int) -> None:
        for page in range(num_pages):
            self._store.remove(f"peer{page}", True)
            for number in (page, _SHARED_FROM + page):
                self._tier.remove(_identity(number), deadline_seconds=LONG_SECONDS)


class BatchContest:
    """As `Contest`, `BATCH_PAGES` pages a call; times are of one page."""

    def __init__(self, setting: Setting, num_bytes: int) -> None:
        self._store, self._tier, self._num_bytes = setting.store, setting.tier, num_bytes
        pages = setting.memory[: BATCH_PAGES * num_bytes].reshape(BATCH_PAGES, num_bytes)
        whole = setting.memory.data
        starts = range(0, BATCH_PAGES * num_bytes, num_bytes)
        self._contents = [whole[start : start + num_bytes] for start in starts]
        self._columns = [page.ctypes.data for page in pages], [num_bytes] * BATCH_PAGES

    def seconds(self, num_batches: int, num_rounds: int) -> dict[str, list[float]]:
        """The median of each round, by side; a round before the first warms up."""
        medians: dict[str, list[float]] = {}
        puts = [Side("Mooncake batch_put_from", self._peer_put), Side("put_many", self._put)]
        gets = [Side("Mooncake batch_get_into", self._peer_get), Side("read_many", self._read)]
        for round_number in range(num_rounds + 1):
            for sides in (puts, gets):
                for name, taken in _take_turns(sides, num_batches).items():
                    if round_number:
                        medians.setdefault(name, []).append(median(taken) / BATCH_PAGES)
            self._remove_all(num_batches)
        return medians

    def _peer_put(self, batch: int) -> None:
        codes = self._store.batch_put_from(_peer_keys(batch), *self._columns)
        _need(codes == [0] * BATCH_PAGES)

    def _peer_get(self, batch: int) -> None:
        codes = self._store.batch_get_into(_peer_keys(batch), *self._columns)
        _need(codes == [self._num_bytes] * BATCH_PAGES)

    def _put(self, batch: int) -> None:
        pages = zip(_identities(batch), self._contents, strict=True)
        self._tier.put_many(
            [Page(name, content, 64) for name, content in pages], deadline_seconds=LONG_SECONDS
        )

    def _read(self, batch: int) -> None:
        names, size = _identities(batch), self._num_bytes
        with self._tier.read_many(names, size, deadline_seconds=LONG_SECONDS) as found:
            _need(None not in found)

    def _remove_all(self, num_batches: int) -> None:
        for batch in range(num_batches):
            for key, name in zip(_peer_keys(batch), _identities(batch), strict=True):
                self._store.remove(key, True)
                self._tier.remove(name, deadline_seconds=LONG_SECONDS)


@contextmanager
def local_store(num_bytes: int) -> Iterator[Setting]:
    """A store of own processes; pages of a call may have so many bytes together.

    Raises:
        InvalidArgument: Mooncake, or a library that it needs, is not installed.
    """
    master = LocalMaster()
    master.start()
    owner = LocalOwner(master.address, SEGMENT_BYTES)
    lane_bytes = num_bytes + BATCH_PAGES * FRAME_BYTES
    options = MooncakeOptions(master.address, max_page_bytes=lane_bytes, staging_bytes=64 << 20)
    store: Any = open_store(options)
    memory = np.random.default_rng(0).integers(0, 256, num_bytes, np.uint8)
    try:
        with MooncakeTier(store, options) as tier:
            tier.share(memory.data)
            yield Setting(store, tier, memory)
    finally:
        owner.kill()
        master.kill()


def _take_turns(sides: list[Side], num_pages: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {side.name: [] for side in sides}
    for page in range(num_pages):
        turn = page % len(sides)
        for side in (*sides[turn:], *sides[:turn]):
            start = time.perf_counter()
            side.run(page)
            taken[side.name].append(time.perf_counter() - start)
    return taken


def _peer_keys(batch: int) -> list[str]:
    return [f"peer{batch * BATCH_PAGES + page}" for page in range(BATCH_PAGES)]


def _identities(batch: int) -> list[bytes]:
    return [_identity(batch * BATCH_PAGES + page) for page in range(BATCH_PAGES)]


def _identity(page: int) -> bytes:
    return page.to_bytes(32, "little")


def _need(is_right: bool) -> None:
    if not is_right:
        raise RuntimeError("a call did not do what it is timed for")
