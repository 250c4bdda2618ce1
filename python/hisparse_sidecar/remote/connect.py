"""The remote tier of a store that answers, or is going to: nobody waits for its master."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import cast

from hisparse_sidecar._core import TierDown
from hisparse_sidecar.remote.mooncake import MooncakeTier
from hisparse_sidecar.remote.object_store import MooncakeOptions, ObjectStore, failure, open_store

_LOG = logging.getLogger(__name__)
_CLOSE_SECONDS = 10.0  # an attempt under way takes half of it at most


def connect(options: MooncakeOptions) -> MooncakeTier:
    """A tier on a store. While the master does not answer, the tier is down, and tries by itself.

    Raises:
        InvalidArgument: the wheel of the store is not installed, or a library that it needs.
        TierDown: the store refuses to use our memory.
    """
    open_ = partial(open_store, options)
    try:
        store = open_()
    except TierDown as error:
        _LOG.warning("%s; it is tried again", error)
        late = LateStore(open_, options.breaker.probe_seconds)
        return MooncakeTier(cast("ObjectStore", late), options, is_up=False)
    return MooncakeTier(store, options)


class LateStore:
    """An `ObjectStore` that is opened by a thread of its own; `TierDown` until it is."""

    def __init__(self, open_: Callable[[], ObjectStore], pause_seconds: float) -> None:
        """Calls `open_` after each pause, until it does not raise `TierDown`."""
        self._open, self._pause_seconds = open_, pause_seconds
        self._lock = threading.Lock()
        self._memory: list[tuple[int, int]] = []  # that callers have registered
        self._store: ObjectStore | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._connect, name="hisparse-connect", daemon=True)
        self._thread.start()

    def __getattr__(self, name: str) -> object:
        """Any other call is the store's own."""
        if self._store is None:
            raise TierDown("remote tier: its master has not answered yet")
        return getattr(self._store, name)

    def register_buffer(self, buffer_ptr: int, size: int) -> int:
        """The store's own, which gets the memory as soon as there is one."""
        with self._lock:
            if self._store is not None:
                return self._store.register_buffer(buffer_ptr, size)
            self._memory.append((buffer_ptr, size))
            return 0

    def close(self) -> int:
        """Ends the attempts, and leaves the store."""
        self._is_over.set()
        self._thread.join(_CLOSE_SECONDS)
        return 0 if self._store is None else self._store.close()

    def _connect(self) -> None:
        while not self._is_over.wait(self._pause_seconds):
            try:
                store = self._open()
            except TierDown as error:
                _LOG.debug("%s", error)
                continue
            if self._take(store):
                return
            store.close()

    def _take(self, store: ObjectStore) -> bool:
        """Whether the store has what was registered, and is in use from now on."""
        with self._lock:
            codes = [store.register_buffer(*memory) for memory in self._memory]
            if any(code < 0 for code in codes):
                _LOG.warning("%s", failure("register_buffer", min(codes)))
                return False
            if self._is_over.is_set():
                return False
            self._store = store
            _LOG.info("remote tier: its master answers")
            return True
