"""What a store below the host pool may answer, and numbers without end: never a panic."""

from collections.abc import Callable

import pytest

from hisparse_sidecar._core import Hierarchy, Manager, WrongState
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
