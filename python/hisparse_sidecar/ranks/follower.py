"""Every other rank: makes the same calls as rank 0, and takes what they came to there."""

import time
from collections.abc import Sequence
from contextlib import suppress

from hisparse_sidecar._core import Stats
from hisparse_sidecar.errors import DeadlinePassed, HisparseError, TierDown, WrongState
from hisparse_sidecar.ranks.calls import Call, CallKind
from hisparse_sidecar.ranks.link import Link
from hisparse_sidecar.ranks.mirror import Mirror
from hisparse_sidecar.ranks.place import RankPlace
from hisparse_sidecar.ranks.records import Arrival, Decision, Farewell, decided, stats_of
from hisparse_sidecar.ranks.share import RankShare, divergence
from hisparse_sidecar.requirements import require

_FAREWELL_SECONDS = 1.0


class RankFollower(RankShare):
    """Decides nothing: a call waits until rank 0 has made it."""

    def __init__(self, place: RankPlace, mirror: Mirror, link: Link, stats: bytes) -> None:
        """Takes charge of `link`; `stats` are the manager's, packed."""
        super().__init__(place, mirror)
        self._link, self._stats = link, stats
        self._arrived_at = 0

    def stats(self) -> Stats:
        """The manager's after the last decision that was taken here."""
        return stats_of(self._stats)

    def end_step(self, *, committed: bool) -> None:
        """See `StepRanks`; rank 0 learns it with the next call."""
        self.steps += 1

    def leave(self) -> None:
        """See `StepRanks`."""
        if self._broken is None:
            self._say_farewell(Farewell(False, "it has closed its sidecar"))
            self._broken = WrongState(f"rank {self.place.rank} has left after {self.steps} steps")

    def _decide(self, call: Call) -> Sequence[int]:
        decision = self._next_decision(call)
        if decision is None:
            self._refuse_if_broken(call)
            return self._give_back(call)
        self.number, self._stats = decision.number, decision.stats
        self._mirror.replace(decision.replaced)
        if decision.call != call or decision.steps != self.steps:
            self._diverge(call, decision)
        if isinstance(decision.outcome, HisparseError):
            raise decision.outcome
        return decision.outcome

    def _next_decision(self, call: Call) -> Decision | None:
        """Waits for it; None once there will be no more."""
        if self._broken is not None:
            return None
        # rank 0 may itself wait for one that is late, and then for lower tiers
        seconds = 2 * self.place.deadline_seconds + call.deadline_seconds
        until = time.monotonic() + seconds
        try:
            return decided(self._link.take() or self._awaited(call, until))
        except TimeoutError:
            needed = f"decision {self.number + 1}, {call}"
            found = f"rank 0 was last heard of at decision {self.number}"
            raise DeadlinePassed(f"{found}; needed {needed}, in {seconds:g} s") from None
        except ConnectionError as error:
            found = f"rank 0 has gone after decision {self.number}"
            self._broken = TierDown(f"{found}, call {self.number + 1} needs it: {error}")
            self._link.close()
            return None

    def _awaited(self, call: Call, until: float) -> bytes:
        """Tells rank 0 where this rank is, and waits."""
        if self._arrived_at != self.number + 1:
            self._arrived_at = self.number + 1
            with suppress(ConnectionError):  # it has left, perhaps after this decision
                self._link.send(Arrival(self.number + 1, self.steps, call).encoded(), until)
        return self._link.receive(until)

    def _diverge(self, call: Call, decision: Decision) -> None:
        ours = divergence(self.place.rank, call, self.steps)
        theirs = divergence(0, decision.call, decision.steps)
        self._broken = WrongState(f"call {decision.number}: {ours}, {theirs}")
        self._say_farewell(Farewell(True, str(self._broken)))
        raise WrongState(str(self._broken))

    def _say_farewell(self, farewell: Farewell) -> None:
        try:
            self._link.send(farewell.encoded(), time.monotonic() + _FAREWELL_SECONDS)
        except (ConnectionError, TimeoutError):
            return  # then rank 0 sees that the stream ends
        finally:
            self._link.close()

    def _give_back(self, call: Call) -> Sequence[int]:
        """Forgets here what a group without its leader holds; nobody else is left to decide it."""
        sequence, *length = call.arguments
        found = self._mirror[sequence].length
        if call.kind == CallKind.TRUNCATE:
            require(0 <= length[0] <= found, f"length: found {length[0]}, needed 0 to {found}")
        return ()
