"""Removals under way: what is put under such a name meanwhile could be what goes."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Removals:
    """Names of pages that are being removed, also by calls whose callers have left."""

    def __init__(self) -> None:
        self._has_ended = threading.Condition()
        self._under_way: Counter[bytes] = Counter()

    @contextmanager
    def of(self, identity: bytes) -> Iterator[None]:
        """Names a page for as long as the `with` lasts."""
        with self._has_ended:
            self._under_way[identity] += 1
        try:
            yield
        finally:
            with self._has_ended:
                self._under_way[identity] -= 1
                self._under_way += Counter()  # drops what has come to 0
                self._has_ended.notify_all()

    def wait_out(self, identities: Sequence[bytes], deadline: float) -> bool:
        """Whether none of these is being removed by `deadline`, a time of `time.monotonic()`."""
        with self._has_ended:
            return self._has_ended.wait_for(
                lambda: not any(identity in self._under_way for identity in identities),
                max(0.0, deadline - time.monotonic()),
            )
