"""Looks at the server at a fixed interval: its process from outside, its counts by the probe."""

import time
from dataclasses import dataclass
from typing import Any

from hisparse_sidecar.cli.stress.counts import Counts
from hisparse_sidecar.cli.stress.footprint import Footprint, footprint
from hisparse_sidecar.cli.stress.server_process import ServerProcess
from hisparse_sidecar.client import ServerUnavailable

INTERVAL_SECONDS = 1.0


@dataclass(frozen=True)
class Sample:
    """The server at one moment, between two operations.

    Attributes:
        seconds: since the run began.
        generation: of the server.
        footprint: of its process.
        malloc_bytes: what malloc has given out; None where nobody tells.
        num_leases: leases of prompts, and host pages that are out on leases.
        num_pages: names of pages that are known, by who knows them: "directory", "file", "remote".
    """

    seconds: float
    generation: int
    footprint: Footprint
    malloc_bytes: int | None
    num_leases: int
    num_pages: dict[str, int]


@dataclass(frozen=True)
class Opening:
    """A prompt that was opened.

    Attributes:
        seconds: since the run began.
        took_us: how long the call took, what was found being loaded by it.
        asked_pages: pages of the prompt that may be found: whole ones, before its last token.
        found_pages: of these.
    """

    seconds: float
    took_us: float
    asked_pages: int
    found_pages: int


class Sampler:
    """Keeps what was seen.

    Attributes:
        samples: of the server, in order.
        openings: of prompts, in order.
    """

    def __init__(self, server: ServerProcess, counts: Counts) -> None:
        self._server = server
        self._counts = counts
        self._began = time.monotonic()
        self._next = 0.0
        self.samples: list[Sample] = []
        self.openings: list[Opening] = []

    def look(self) -> None:
        """Takes a sample if one is due, and the server is not about to be killed.

        Raises:
            ServerUnavailable: the server is gone.
        """
        if self._server.is_killed or self._seconds() < self._next:
            return
        self._next = self._seconds() + INTERVAL_SECONDS
        state = self._server.ask("state")
        try:
            self._counts.footprint = footprint(self._server.pid)
        except OSError as error:
            raise ServerUnavailable(f"process {self._server.pid}: {error}") from None
        self.samples.append(self._sample(state, self._counts.footprint))

    def _sample(self, state: dict[str, Any], found: Footprint) -> Sample:
        leases = state["prefix"]["leases"] + state["core"]["host_pages_leased"]
        pages = {name: tier["pages"] for name, tier in state["tiers"].items()}
        pages["directory"] = state["prefix"]["pages"]
        at, generation = self._seconds(), self._server.generation
        return Sample(at, generation, found, state["malloc_bytes"], leases, pages)

    def note_opening(self, took_us: float, asked_pages: int, found_pages: int) -> None:
        """A prompt was opened just now."""
        self.openings.append(Opening(self._seconds(), took_us, asked_pages, found_pages))

    def _seconds(self) -> float:
        return time.monotonic() - self._began
