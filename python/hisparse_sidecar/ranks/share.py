"""A rank's share of the one manager: the calls are the same on every rank, the deciding is not."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch

from hisparse_sidecar._core import PrefixStats, SequenceRanges, Stats, plan_step
from hisparse_sidecar.errors import HisparseError, WrongState
from hisparse_sidecar.ranks.calls import Call, CallKind, Given, micros
from hisparse_sidecar.ranks.mirror import Mirror
from hisparse_sidecar.ranks.place import RankPlace

if TYPE_CHECKING:
    from hisparse_sidecar._core import StepTables


class RankShare(ABC):
    """Implements `HostManager` and `StepRanks` over decisions that are the same on every rank.

    What changes state, and `check_integrity`, is a *call*: every rank makes it, in the same order.
    All other methods answer from what the decisions so far add up to, and wait for nobody.

    Once a rank has gone or has made another call than rank 0, nothing begins any more: `truncate`
    and `close` still work, every other call raises the same error again. After a DeadlinePassed,
    nothing has changed, and the same call may be made again.

    Attributes:
        place: which rank this is.
        number: decisions that have been taken here.
        steps: steps that have ended here.
    """

    def __init__(self, place: RankPlace, mirror: Mirror) -> None:
        self.place, self._mirror = place, mirror
        self.number = self.steps = 0
        self._broken: HisparseError | None = None

    @abstractmethod
    def _decide(self, call: Call) -> Sequence[int]:
        """The integers that the call comes to; raises what every rank raises."""

    @abstractmethod
    def end_step(self, *, committed: bool) -> None:
        """See `StepRanks`."""

    @abstractmethod
    def leave(self) -> None:
        """See `StepRanks`."""

    @abstractmethod
    def stats(self) -> Stats:
        """See `Manager`."""

    # -- calls --------------------------------------------------------------------------------

    def open_sequence(
        self,
        prompt_tokens: int,
        max_new_tokens: int,
        *,
        slots: int,
        window_slots: int,
        deadline_seconds: float | None = None,
    ) -> int:
        """See `Manager`, or `Hierarchy` where rank 0 has one."""
        arguments = prompt_tokens, max_new_tokens, slots, window_slots, micros(deadline_seconds)
        return self._made(Call.of(CallKind.OPEN, arguments))[0]

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
        """See `Hierarchy`; waits until no rank is in a step."""
        given = Given(tenant, tokens, recompute_tokens_per_second)
        arguments = max_new_tokens, slots, window_slots, micros(deadline_seconds), *given.digest()
        handle, length, *_ = self._made(Call.of(CallKind.PROMPT, arguments, given))
        return handle, length

    def fork(
        self,
        seq: int,
        length: int,
        max_new_tokens: int,
        *,
        slots: int,
        window_slots: int,
        deadline_seconds: float | None = None,
    ) -> int:
        """See `Manager`, or `Hierarchy` where rank 0 has one; waits until no rank is in a step."""
        arguments = seq, length, max_new_tokens, slots, window_slots, micros(deadline_seconds)
        return self._made(Call.of(CallKind.FORK, arguments))[0]

    def append_rows(
        self, rows: Sequence[tuple[int, int]], token_ids: Sequence[int] | None = None
    ) -> list[int]:
        """See `StepRanks`; waits until every rank has come to this call.

        Then all have ended the step before: its rows are in the host pool, whoever writes them,
        and nobody reads a page any more that another sequence gets.
        """
        given = Given(token_ids=token_ids)
        told = 0 if token_ids is None else given.digest()[0]
        call = Call.of(CallKind.APPEND, chain([told], *rows), given)
        return self._mirror.append(call, self._decide(call))

    def plan_step(self, rows: Sequence[tuple[int, int]], padded_rows: int) -> "StepTables":
        """See `StepRanks`; waits for nobody."""
        sequences = []
        for handle, count in rows:
            sequence = self._mirror.active(handle)
            start = sequence.length - count
            sequences.append((start, count, sequence.pages, sequence.ranges))
        return plan_step(sequences, padded_rows, self._mirror.block_tokens)

    def truncate(self, seq: int, length: int) -> None:
        """See `Manager`."""
        self._made(Call.of(CallKind.TRUNCATE, (seq, length)))

    def close(self, seq: int) -> None:
        """See `Manager`."""
        self._made(Call.of(CallKind.CLOSE, (seq,)))

    def preempt(self, seq: int) -> None:
        """See `Manager`; waits until no rank is in a step."""
        self._made(Call.of(CallKind.PREEMPT, (seq,)))

    def resume(self, seq: int, *, slots: int, window_slots: int, deadline_seconds: float) -> int:
        """See `Hierarchy`; waits until no rank is in a step."""
        arguments = seq, slots, window_slots, micros(deadline_seconds)
        return self._made(Call.of(CallKind.RESUME, arguments))[1]

    def add_tenant(self, name: str, quota_pages: int | None = None) -> None:
        """See `Manager`."""
        self._give_quota(CallKind.ADD_TENANT, name, quota_pages)

    def set_quota(self, name: str, quota_pages: int | None = None) -> None:
        """See `Manager`."""
        self._give_quota(CallKind.SET_QUOTA, name, quota_pages)

    def _give_quota(self, kind: CallKind, name: str, quota_pages: int | None) -> None:
        quota, given = -1 if quota_pages is None else quota_pages, Given(name)
        self._made(Call.of(kind, (quota, *given.digest()), given))

    def tenant_usage(self, name: str) -> tuple[int, int | None]:
        """See `Manager`; a call that every rank makes."""
        given = Given(name)
        used, quota = self._made(Call.of(CallKind.TENANT_USAGE, given.digest(), given))
        return used, None if quota < 0 else quota

    def evict(self, num_pages: int) -> int:
        """See `Manager`; waits until no rank is in a step."""
        return self._made(Call.of(CallKind.EVICT, (num_pages,)))[0]

    def flush(self, deadline_seconds: float) -> None:
        """See `Hierarchy`; waits until no rank is in a step."""
        self._made(Call.of(CallKind.FLUSH, (micros(deadline_seconds),)))

    def drain(self, deadline_seconds: float) -> tuple[int, int]:
        """See `Hierarchy`; waits until no rank is in a step."""
        freed, kept = self._made(Call.of(CallKind.DRAIN, (micros(deadline_seconds),)))
        return freed, kept

    def check_integrity(self) -> None:
        """See `Manager`; waits for every rank, as `append_rows` does."""
        self._made(Call.of(CallKind.CHECK, ()))
        self._mirror.check_integrity()

    def _made(self, call: Call) -> Sequence[int]:
        outcome = self._decide(call)
        self._mirror.apply(call, outcome)
        return outcome

    def _refuse_if_broken(self, call: Call) -> None:
        """Raises what has broken the group, unless the call only gives something back."""
        if self._broken is not None and not call.gives_back:
            raise type(self._broken)(str(self._broken))

    # -- queries ------------------------------------------------------------------------------

    def length(self, seq: int) -> int:
        """See `Manager`."""
        return self._mirror[seq].length

    def admitted_tokens(self, seq: int) -> int:
        """See `Manager`."""
        return self._mirror[seq].admitted

    def host_pages(self, seq: int) -> list[int]:
        """See `HostManager`."""
        return self._mirror.active(seq).pages

    def ranges(self, seq: int) -> SequenceRanges:
        """See `Manager`."""
        return self._mirror.active(seq).ranges

    def rests(self, seq: int) -> bool:
        """See `Manager`."""
        return self._mirror[seq].rests

    def publish(self, seq: int) -> int:
        """See `Manager`; it is done once the last step has ended on every rank, so 0 for now."""
        self._mirror[seq]
        return 0

    def prefix_stats(self) -> PrefixStats:
        """See `Manager`; rank 0 knows them."""
        raise WrongState(f"rank {self.place.rank} has no directory of pages, ask rank 0")

    def pooled_state(self, seq: int, anchor: int) -> tuple[int, int]:
        """See `Manager`."""
        return self._mirror.pooled_state(seq, anchor)

    def advance_pooled(self, seq: int, anchor: int, num_tokens: int) -> tuple[int, int, int]:
        """See `Manager`."""
        return self._mirror.advance_pooled(seq, anchor, num_tokens)

    def own_rows(self, row_ids: torch.Tensor, rows_per_page: int) -> torch.Tensor:
        """See `StepRanks`: the pages are dealt out by their numbers."""
        writers = row_ids // rows_per_page % self.place.num_ranks
        return torch.where(writers == self.place.rank, row_ids, -1)


def divergence(rank: int, call: Call, steps: int) -> str:
    """What one rank did where another did something else."""
    return f"rank {rank} made {call} after {steps} steps"
