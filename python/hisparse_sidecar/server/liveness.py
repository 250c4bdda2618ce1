"""Which clients are still heard of, and the end of those that are not. Of the event loop only.

A client that was killed closes its side socket; one that hangs or is stopped keeps it open, and
with it what it owns. So a client is heard when a call of it begins or ends, or a line of it comes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class _Watched:
    end: Callable[[str], None]
    last_heard: float
    calls: int = 0


class Liveness:
    """The clients that are connected, by token. A client is taken off it once, and then ended.

    Attributes:
        max_silent_seconds: a client that was not heard for longer is ended by `end_silent`.
        ended: clients that were.
    """

    def __init__(
        self, max_silent_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_silent_seconds = max_silent_seconds
        self.ended = 0
        self._clock = clock
        self._watched: dict[str, _Watched] = {}
        self._last_scan = clock()

    @property
    def scan_seconds(self) -> float:
        """How often to call `end_silent`: a silent client lasts at most 1.25 times the limit."""
        return self.max_silent_seconds / 4

    @contextmanager
    def watching(self, token: str, end: Callable[[str], None]) -> Iterator[None]:
        """Inside, the client is ended when it is silent.

        Args:
            token: of a client that has just connected.
            end: makes the connection end, as if the client had; given the reason. Must not block.
        """
        self._watched[token] = _Watched(end, self._clock())
        try:
            yield
        finally:
            self._watched.pop(token, None)

    def heard(self, token: str | None) -> None:
        """A sign of life; one of a client that has ended, or of no client, means nothing."""
        if token is not None and (client := self._watched.get(token)):
            client.last_heard = self._clock()

    @contextmanager
    def calling(self, token: str | None) -> Iterator[None]:
        """Inside, a call of the client is running or waits for its turn: it is not silent."""
        client = None if token is None else self._watched.get(token)
        if client is None:
            yield
            return
        client.calls += 1
        try:
            yield
        finally:
            client.calls -= 1
            client.last_heard = self._clock()

    def end_silent(self) -> None:
        """Ends every client that was silent for too long."""
        now = self._clock()
        late_seconds = max(0.0, now - self._last_scan - self.scan_seconds)
        self._last_scan = now
        for client in self._watched.values():
            # what came while this process did not run is still unread: not the clients' silence
            client.last_heard = min(now, client.last_heard + late_seconds)
        for token, client in list(self._watched.items()):
            silent_seconds = now - client.last_heard
            if not client.calls and silent_seconds > self.max_silent_seconds:
                del self._watched[token]
                self.ended += 1
                client.end(
                    f"silent for {silent_seconds:.3g} s, at most {self.max_silent_seconds:g} s"
                )
