"""Counters of one process of an engine whose KV rows we keep."""

from dataclasses import dataclass

from hisparse_sidecar._core import Stats
from hisparse_sidecar.stats import GroupTraffic, TierBytes


@dataclass(frozen=True)
class EngineRequests:
    """Requests of an engine by how far they are.

    Attributes:
        waiting: prefilled, for room in host pool and hot buffers.
        copying: prefilled, their rows on the way to the host.
        decoding: with their rows on the host.
    """

    waiting: int
    copying: int
    decoding: int


@dataclass(frozen=True)
class SelectionCalls:
    """Calls of the engine for lists of tokens that ended alike.

    A replay of a captured graph is no call: what was captured counts once.

    Attributes:
        kind: of the call, in the engine's words.
        outcome: "selected", or why the engine's own selection ran.
        count: how many.
    """

    kind: str
    outcome: str
    count: int


@dataclass(frozen=True)
class EngineStats:
    """A snapshot; counters run from the start of the process.

    Attributes:
        engine: name and version.
        rank: the process's among those that serve one model.
        core: the core's counts of sequences, pages and arenas.
        groups: traffic of each group of layers with one selection, in layer order.
        held: bytes of all requests that decode; in the host pool with cached prefixes. Of ranks
            that share a host pool the one that writes it tells of its bytes, and of those spilled.
        steps: decode steps begun.
        refused: sequences of a step and group that got no slots: a bug where not 0.
        requests: by how far they are.
        prompt_rows_total: rows of the engine's device pool that hot buffers leave for prompts.
        prompt_rows_free: of these.
        selections: calls by what became of them.
    """

    engine: str
    rank: int
    core: Stats
    groups: tuple[GroupTraffic, ...]
    held: TierBytes
    steps: int
    refused: int
    requests: EngineRequests
    prompt_rows_total: int
    prompt_rows_free: int
    selections: tuple[SelectionCalls, ...]

    @property
    def rows_asked(self) -> int:
        """KV rows that decode steps asked for, over all groups."""
        return sum(group.rows.requests for group in self.groups)

    @property
    def rows_missed(self) -> int:
        """Of these, copied from the host."""
        return sum(group.rows.misses for group in self.groups)

    @property
    def bytes_in(self) -> int:
        """Bytes that decode steps copied from the host; cached prefixes of prompts are not here."""
        return sum(group.rows.bytes_in for group in self.groups)

    @property
    def bytes_spilled(self) -> int:
        """Bytes written to the host, prompts included."""
        return sum(group.spilled_bytes for group in self.groups)
