"""Changes of pages under way, also by calls whose callers have left; as `tier/changes.rs`."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Changes:
    """Names of pages that are being changed in one way.

    A put waits for removals of its page, which could remove what it puts, and a removal for puts,
    which could bring the page back. Changes of one kind are in nobody's way.
    """

    def __init__(self) -> None:
        self._has_ended = threading.Condition()
        self._under_way: Counter[bytes] = Counter()

    @contextmanager
    def of(self, identities: Sequence[bytes]) -> Iterator[None]:
        """Names pages for as long as the `with` lasts."""
        with self._has_ended:
            self._under_way.update(identities)
        try:
            yield
        finally:
            with self._has_ended:
                self._under_way.subtract(identities)
                self._under_way += Counter()  # drops what has come to 0
                self._has_ended.notify_all()

    def wait_out(self, identities: Sequence[bytes], deadline: float) -> bool:
        """Whether none of these is being changed by `deadline`, a time of `time.monotonic()`."""
        with self._has_ended:
            return self._has_ended.wait_for(
                lambda: not any(identity in self._under_way for identity in identities),
                max(0.0, deadline - time.monotonic()),
            )
