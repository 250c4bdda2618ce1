"""What a store below the host pool may answer, and numbers without end: never a panic."""

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from hisparse_sidecar._core import Hierarchy, Manager, TierDown, WrongState
from tests.core.conftest import Host

DEVICE = {"slots": 8, "window_slots": 2}
PROMPT = list(range(300))  # four pages that may be found


class Store:
    """Says that it has `num_held` pages, and gives out `num_bytes` of each."""

    def __init__(self, num_held: int, num_bytes: int) -> None:
        self._num_held, self._num_bytes = num_held, num_bytes

    def count_held(self, names: list[bytes], *, deadline_seconds: float) -> int:
        return self._num_held

    def holds(self, name: bytes, *, deadline_seconds: float) -> bool:
        return True

    def put(self, name: bytes, page: bytes, *, num_tokens: int, deadline_seconds: float) -> None:
        pass

    def get(self, name: bytes, into: bytearray, *, deadline_seconds: float) -> bool:
        into[:] = bytes(self._num_bytes)
        return True

    def remove(self, name: bytes, *, deadline_seconds: float) -> bool:
        return True


class LateStore:
    """A dictionary that is down until it is told that it is up."""

    def __init__(self) -> None:
        self.is_up = False
        self.pages: dict[bytes, bytes] = {}
        self.num_puts = 0

    def put(self, name: bytes, page: bytes, *, num_tokens: int, deadline_seconds: float) -> None:
        self._check()
        self.pages[name] = page
        self.num_puts += 1

    def get(self, name: bytes, into: bytearray, *, deadline_seconds: float) -> bool:
        self._check()
        into[:] = self.pages.get(name, into)
        return name in self.pages

    def holds(self, name: bytes, *, deadline_seconds: float) -> bool:
        self._check()
        return name in self.pages

    def remove(self, name: bytes, *, deadline_seconds: float) -> bool:
        self._check()
        return self.pages.pop(name, None) is not None

    def _check(self) -> None:
        if not self.is_up:
            raise TierDown("not yet")


def cached_tokens(host: Host, store: Store) -> int:
    hierarchy = Hierarchy(host.manager, remote=store)
    opened = hierarchy.open_prompt("", PROMPT, 1, **DEVICE, deadline_seconds=5.0)
    host.manager.close(opened[0])
    host.manager.check_integrity()
    return opened[1]


@pytest.mark.parametrize("num_held", [-1, 0, 4, 5, 1000, 2**63, 2**64])
def test_a_store_that_counts_more_pages_than_it_was_asked_for_is_believed_no_further(
    host: Host, num_held: int
) -> None:
    whole = host.layout.page_bytes
    expected = 256 if 4 <= num_held < 2**64 else 0
    assert cached_tokens(host, Store(num_held, whole)) == expected


def test_a_prompt_opens_where_no_entry_is_left_for_what_the_store_has(host: Host) -> None:
    manager = Manager(host.region, host.layout, host.device_capacity, max_pages=4)
    hierarchy = Hierarchy(manager, remote=Store(4, host.layout.page_bytes))
    for _ in range(4):  # each page of a sequence that rests keeps an entry
        resting = manager.open_sequence(64, 0, **DEVICE)
        manager.append(resting, 64)
        manager.preempt(resting)
    opened = hierarchy.open_prompt("", PROMPT, 1, **DEVICE, deadline_seconds=5.0)
    assert opened[1] == 0
    manager.check_integrity()


@pytest.mark.parametrize("excess", [-1, 1, 4096])
def test_a_page_of_another_length_is_a_miss(host: Host, excess: int) -> None:
    assert cached_tokens(host, Store(4, host.layout.page_bytes + excess)) == 0


@pytest.mark.parametrize("seconds", [1e15, 9.3e18, 1.8e19])
def test_a_deadline_beyond_what_the_clock_counts_is_far_away(
    make_host: Callable[..., Host], seconds: float
) -> None:
    host = make_host()
    hierarchy = Hierarchy(host.manager, remote=Store(0, 0), call_seconds=seconds)
    hierarchy.flush(seconds)
    opened = hierarchy.open_prompt("", PROMPT, 1, **DEVICE, deadline_seconds=seconds)
    assert opened[1] == 0


def test_no_epoch_follows_the_last_one(host: Host) -> None:
    hierarchy = Hierarchy(host.manager)
    hierarchy.adopt_load_table([("file", 2**64 - 1, 0)], 2**64 - 1)
    with pytest.raises(WrongState, match="found 1, needed 18446744073709551615"):
        hierarchy.adopt_load_table([], 1)


def test_a_store_that_is_down_at_first_is_measured_once_it_is_up(host: Host) -> None:
    store = LateStore()
    hierarchy = Hierarchy(host.manager, remote=store)
    assert hierarchy.state()[0].condition == "degraded"  # before any call has failed
    assert hierarchy.measure(60.0) == []
    hierarchy.adopt_load_table([], 1)
    hierarchy.start(measure_seconds=60.0)
    store.is_up = True
    begin = time.monotonic()
    while hierarchy.load_table()[1] < 2:
        assert time.monotonic() - begin < 60.0
        time.sleep(0.01)
    assert [name for name, *_ in hierarchy.load_table()[0]] == ["remote"]
    assert hierarchy.state()[0].condition == "serving"
    hierarchy.close()
    assert store.num_puts > 0
    assert not store.pages


def test_a_hierarchy_that_nobody_closes_waits_for_calls_of_its_store() -> None:
    """A wait that kept the interpreter's lock would never end."""
    subprocess.run([sys.executable, "-c", UNCLOSED], check=True, timeout=120)


UNCLOSED = """
import threading, time
from tests.core.conftest import Host
from hisparse_sidecar._core import Hierarchy

class Store:
    is_up = False
    begun = threading.Event()
    def put(self, name, page, **options):
        self.begun.set()
        for _ in range(100):
            time.sleep(0.01)
    def get(self, name, into, **options):
        return False
    holds = remove = get

host = Host()
hierarchy = Hierarchy(host.manager, remote=Store())
hierarchy.start()
assert Store.begun.wait(60)
del hierarchy
"""
