"""A store that is not there yet: what its callers see, and what it has when it is."""

import socket
import threading
import time
from collections.abc import Callable

import pytest

from hisparse_sidecar._core import TierDown
from hisparse_sidecar.remote.connect import LateStore
from hisparse_sidecar.remote.object_store import check_answers
from tests.remote.scripted_store import ScriptedStore

PAUSE_SECONDS, LONG = 0.01, 60.0


class Memory(ScriptedStore):
    """Notes the memory that it gets; refuses it as often as it is told."""

    def __init__(self, num_refusals: int = 0) -> None:
        super().__init__()
        self.memory: list[tuple[int, int]] = []
        self._num_refusals = num_refusals

    def register_buffer(self, buffer_ptr: int, size: int) -> int:
        if self._num_refusals:
            self._num_refusals -= 1
            return -1
        self.memory.append((buffer_ptr, size))
        return 0


def wait_until(is_so: Callable[[], bool]) -> None:
    start = time.monotonic()
    while not is_so():
        assert time.monotonic() - start < LONG
        time.sleep(PAUSE_SECONDS)


def answers(store: LateStore) -> bool:
    try:
        return store.is_exist("a") == 0  # type: ignore[operator]  # as an `ObjectStore`
    except TierDown:
        return False


def test_a_store_is_used_once_it_answers_and_has_the_memory_that_was_registered() -> None:
    is_there, found = threading.Event(), Memory()

    def open_() -> Memory:
        if not is_there.is_set():
            raise TierDown("not yet")
        return found

    store = LateStore(open_, PAUSE_SECONDS)
    assert store.register_buffer(64, 10) == 0
    assert not answers(store)
    is_there.set()
    wait_until(lambda: answers(store))
    assert store.register_buffer(128, 20) == 0
    assert found.memory == [(64, 10), (128, 20)]
    assert (store.close(), found.num_closed) == (0, 1)


def test_a_store_that_refuses_memory_is_closed_and_another_is_tried() -> None:
    opened: list[Memory] = []

    def open_() -> Memory:
        opened.append(Memory(num_refusals=1 if not opened else 0))
        return opened[-1]

    store = LateStore(open_, PAUSE_SECONDS)
    store.register_buffer(64, 10)
    wait_until(lambda: answers(store))
    assert (opened[0].num_closed, opened[1].memory) == (1, [(64, 10)])
    store.close()


def test_closing_ends_the_attempts_and_leaves_a_store_that_comes_too_late() -> None:
    begun, may_end, found = threading.Event(), threading.Event(), Memory()

    def open_() -> Memory:
        begun.set()
        assert may_end.wait(LONG)
        return found

    store = LateStore(open_, PAUSE_SECONDS)
    assert begun.wait(LONG)
    closing = threading.Thread(target=store.close)
    closing.start()
    wait_until(store._is_over.is_set)
    may_end.set()
    closing.join()
    assert found.num_closed == 1
    assert not answers(store)


def read_and_close(server: socket.socket) -> None:
    connection = server.accept()[0]
    connection.recv(100)  # all of it: what is left unread would reset the connection
    connection.close()


@pytest.mark.parametrize("reacts", [True, False])
def test_a_master_answers_if_it_reacts_at_all(reacts: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if reacts:
            closes = threading.Thread(target=read_and_close, args=(server,))
            closes.start()
            check_answers(address)
            closes.join()
        else:  # the system takes the connection, and nobody reads
            with pytest.raises(TierDown, match="does not answer"):
                check_answers(address)
    with pytest.raises(TierDown, match="does not answer"):
        check_answers(address)


def test_an_address_of_another_kind_is_left_to_the_client() -> None:
    check_answers("etcd://127.0.0.1")
