"""What the pipeline asks of host metadata and of steps, alone or as one rank of several."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from hisparse_sidecar._core import Manager, PrefixStats, SequenceRanges, Stats

if TYPE_CHECKING:
    from hisparse_sidecar._core import StepTables


class HostManager(Protocol):
    """The core's `Manager`, or a rank's share of one; every method is documented there."""

    def truncate(self, seq: int, length: int) -> None:
        """See `Manager`."""

    def close(self, seq: int) -> None:
        """See `Manager`."""

    def advance_pooled(self, seq: int, anchor: int, num_tokens: int) -> tuple[int, int, int]:
        """See `Manager`."""

    def length(self, seq: int) -> int:
        """See `Manager`."""

    def admitted_tokens(self, seq: int) -> int:
        """See `Manager`."""

    def host_pages(self, seq: int) -> list[int]:
        """See `Manager`; the list is the callee's own and must not be changed."""

    def pooled_state(self, seq: int, anchor: int) -> tuple[int, int]:
        """See `Manager`."""

    def ranges(self, seq: int) -> SequenceRanges:
        """See `Manager`."""

    def preempt(self, seq: int) -> None:
        """See `Manager`."""

    def rests(self, seq: int) -> bool:
        """See `Manager`."""

    def publish(self, seq: int) -> int:
        """See `Manager`."""

    def add_tenant(self, name: str, quota_pages: int | None = None) -> None:
        """See `Manager`."""

    def set_quota(self, name: str, quota_pages: int | None = None) -> None:
        """See `Manager`."""

    def tenant_usage(self, name: str) -> tuple[int, int | None]:
        """See `Manager`."""

    def evict(self, num_pages: int) -> int:
        """See `Manager`."""

    def prefix_stats(self) -> PrefixStats:
        """See `Manager`."""

    def stats(self) -> Stats:
        """See `Manager`."""

    def check_integrity(self) -> None:
        """See `Manager`."""


class SequenceMoves(Protocol):
    """The core's `Hierarchy`, or a rank's share of one: calls for which pages may move."""

    def open_prompt(
        self,
        tenant: str,
        tokens: Sequence[int],
        max_new_tokens: int,
        *,
        slots: int,
        window_slots: int,
        deadline_seconds: float,
        recompute_tokens_per_second: float | None = None,
    ) -> tuple[int, int]:
        """See `Hierarchy`."""

    def open_sequence(
        self,
        prompt_tokens: int,
        max_new_tokens: int,
        *,
        slots: int,
        window_slots: int,
        deadline_seconds: float,
    ) -> int:
        """See `Hierarchy`."""

    def fork(
        self,
        seq: int,
        length: int,
        max_new_tokens: int,
        *,
        slots: int,
        window_slots: int,
        deadline_seconds: float,
    ) -> int:
        """See `Hierarchy`."""

    def resume(self, seq: int, *, slots: int, window_slots: int, deadline_seconds: float) -> int:
        """See `Hierarchy`."""

    def flush(self, deadline_seconds: float) -> None:
        """See `Hierarchy`."""

    def drain(self, deadline_seconds: float) -> tuple[int, int]:
        """See `Hierarchy`."""


class StepRanks(Protocol):
    """How steps begin and end, and which pages this process writes."""

    def append_rows(
        self, rows: Sequence[tuple[int, int]], token_ids: Sequence[int] | None = None
    ) -> list[int]:
        """Makes room for (sequence, number of new rows) each, in all of them or in none.

        Args:
            rows: the sequences, each once.
            token_ids: of every row, see `Manager.note_tokens`; None = not told.

        Returns:
            The position of the first new row of each.
        """

    def plan_step(self, rows: Sequence[tuple[int, int]], padded_rows: int) -> "StepTables":
        """Where everything lies of the step of these rows, see `Manager.plan_step`."""

    def end_step(self, *, committed: bool) -> None:
        """The step has ended here: committed, its rows are in the host pool, or to be undone."""

    def own_rows(self, row_ids: torch.Tensor, rows_per_page: int) -> torch.Tensor:
        """Those rows of host pages that this process writes in decode steps.

        Args:
            row_ids: [n] int64, on the CPU; -1 = none.
            rows_per_page: rows of one page.

        Returns:
            [n] int64, a row or, where another rank writes it, -1.
        """

    def leave(self) -> None:
        """No step will begin here any more; a second call does nothing."""


class SoleRank:
    """A process that shares its host pool with none."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def append_rows(
        self, rows: Sequence[tuple[int, int]], token_ids: Sequence[int] | None = None
    ) -> list[int]:
        """See `StepRanks`."""
        return self._manager.append_rows(rows, token_ids)

    def plan_step(self, rows: Sequence[tuple[int, int]], padded_rows: int) -> "StepTables":
        """See `StepRanks`."""
        return self._manager.plan_step(rows, padded_rows)

    def end_step(self, *, committed: bool) -> None:
        """Nobody waits for it."""

    def own_rows(self, row_ids: torch.Tensor, rows_per_page: int) -> torch.Tensor:
        """All of them."""
        return row_ids

    def leave(self) -> None:
        """Nobody misses it."""
