"""Rank 0: makes every call on the one manager, and publishes what it came to."""

import select
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import Hierarchy, Manager, PrefixStats, Stats
from hisparse_sidecar.errors import DeadlinePassed, HisparseError, TierDown, WrongState
from hisparse_sidecar.ranks.calls import Call
from hisparse_sidecar.ranks.deciding import Deciding
from hisparse_sidecar.ranks.link import Link
from hisparse_sidecar.ranks.mirror import Mirror
from hisparse_sidecar.ranks.place import RankPlace
from hisparse_sidecar.ranks.records import (
    Arrival,
    Decision,
    Farewell,
    packed_stats,
    said,
)
from hisparse_sidecar.ranks.share import RankShare, divergence


@dataclass
class _Follower:
    """A rank that follows, and what it said last."""

    rank: int
    link: Link
    heard: Arrival | None = None

    def has_come_to(self, number: int) -> bool:
        """Whether it waits for this decision."""
        return self.heard is not None and self.heard.number == number


class RankLeader(RankShare):
    """Decides for all ranks.

    Calls that touch bytes which other ranks write or read wait until every rank has come to them;
    the others are made at once, and the followers take them when they come by.
    """

    def __init__(
        self,
        place: RankPlace,
        mirror: Mirror,
        manager: Manager,
        hierarchy: Hierarchy,
        links: dict[int, Link],
    ) -> None:
        """Takes charge of `links`, one for each of the other ranks."""
        super().__init__(place, mirror)
        self._manager = manager
        self._deciding = Deciding(manager, hierarchy, mirror)
        self._followers = {link.fileno(): _Follower(rank, link) for rank, link in links.items()}
        self._poll = select.poll()
        for descriptor in self._followers:
            self._poll.register(descriptor, select.POLLIN)
        self._others_in_step = False  # a step has ended here, others may still be in it
        self._unsettled = False  # it was committed
        self._unfolded: list[tuple[int, int, int]] = []
        self._unpublished: list[int] = []
        self._replaced: list[int] = []  # by publishing, since the last decision

    def stats(self) -> Stats:
        """See `Manager`."""
        return self._manager.stats()

    def advance_pooled(self, seq: int, anchor: int, num_tokens: int) -> tuple[int, int, int]:
        """See `Manager`. The core learns it when every rank has written its pages of the step."""
        found = self._mirror.advance_pooled(seq, anchor, num_tokens)
        self._unfolded.append((seq, anchor, num_tokens))
        return found

    def publish(self, seq: int) -> int:
        """See `RankShare`."""
        sequence = self._mirror[seq]
        full_pages = sequence.length // PAGE_TOKENS
        if full_pages > sequence.offered:
            sequence.offered = full_pages
            self._unpublished.append(seq)
        return 0

    def prefix_stats(self) -> PrefixStats:
        """See `Manager`."""
        return self._manager.prefix_stats()

    def end_step(self, *, committed: bool) -> None:
        """See `StepRanks`."""
        self.steps += 1
        self._others_in_step = True
        if committed:
            self._unsettled = True
        else:
            self._unfolded.clear()

    def leave(self) -> None:
        """See `StepRanks`. What was decided before stays readable for the others."""
        for follower in list(self._followers.values()):
            self._forget(follower)
        self._broken = self._broken or WrongState(f"rank 0 has left after {self.steps} steps")

    # -- decisions ----------------------------------------------------------------------------

    def _decide(self, call: Call) -> Sequence[int]:
        self.number += 1
        try:
            self._wait_for_others(call)
            outcome = self._deciding.make(call)
        except HisparseError as error:
            self._publish(call, error)
            raise
        except BaseException as error:  # whether the call was made is not known
            what = f"rank 0 was stopped in decision {self.number}, {call}"
            self._broken = HisparseError(f"{what}: {type(error).__name__}: {error}")
            self._publish(call, self._broken)
            raise
        self._publish(call, outcome)
        return outcome

    def _publish(self, call: Call, outcome: Sequence[int] | HisparseError) -> None:
        stats = packed_stats(self._manager.stats())
        replaced, self._replaced = self._replaced, []
        body = Decision(self.number, self.steps, call, outcome, stats, replaced).encoded()
        until = time.monotonic() + self.place.deadline_seconds
        for follower in list(self._followers.values()):
            self._tell(follower, body, until)

    def _tell(self, follower: _Follower, body: bytes, until: float) -> None:
        try:
            follower.link.send(body, until)
        except (ConnectionError, TimeoutError) as error:
            self._lose(follower, TierDown(f"{self._last_heard(follower)}, then: {error}"))

    # -- the others ---------------------------------------------------------------------------

    def _wait_for_others(self, call: Call) -> None:
        """Returns when the call may be made; raises what all ranks are to raise instead."""
        settles = self._settles(call)
        until = time.monotonic() + self.place.deadline_seconds
        self._listen(0)
        while settles and self._broken is None and self._missing():
            left = until - time.monotonic()
            if left <= 0:
                raise self._late(call)
            self._listen(left)
        self._compare(call)
        self._refuse_if_broken(call)
        if settles and self._broken is None:
            self._settle()

    def _settles(self, call: Call) -> bool:
        """Whether every rank has to come to the call before it is made.

        What is cut or closed leaves the open pages of a committed step, so its rows have to be
        there, whoever writes them. What moves pages needs no rank to be in a step: it may still
        write a page that would be copied or sent down, or read one, as another sequence's, that
        would be written. And only then have all writers of a full page committed it, so no page
        is shared, idle or at rest before: pages that go down, whenever rank 0's threads send them,
        are whole. While pages wait to be shared nothing is decided without them: what prompts find
        and what is free is as with one process.

        A rank that is far behind may restore a sequence from pages that rank 0 has since given to
        another. It does so only if rank 0 has closed, cut or preempted the sequence, and so no step
        of this rank will read what it restored.
        """
        waits = self._unsettled if call.gives_back else self._others_in_step and call.moves_pages
        return call.meets or waits or bool(self._unpublished)

    def _settle(self) -> None:
        self._unsettled = self._others_in_step = False
        for sequence, anchor, num_tokens in self._unfolded:
            self._manager.advance_pooled(sequence, anchor, num_tokens)
        self._unfolded.clear()
        unpublished, self._unpublished = self._unpublished, []
        for sequence in unpublished:
            replaced = self._deciding.publish(sequence)
            self._mirror.replace(replaced)
            self._replaced += replaced

    def _missing(self) -> list[_Follower]:
        return [one for one in self._followers.values() if not one.has_come_to(self.number)]

    def _late(self, call: Call) -> DeadlinePassed:
        missing = "; ".join(self._last_heard(one) for one in self._missing())
        needed = f"decision {self.number}, {call}, after {self.steps} steps"
        return DeadlinePassed(f"{missing}; needed {needed}, in {self.place.deadline_seconds:g} s")

    def _listen(self, seconds: float) -> None:
        """Takes what the others have said, after at most `seconds`."""
        for descriptor, _ in self._poll.poll(seconds * 1000):
            follower = self._followers[descriptor]
            try:
                while descriptor in self._followers and (body := follower.link.take()):
                    self._hear(follower, said(body))
            except ConnectionError as error:
                self._lose(follower, TierDown(f"{self._last_heard(follower)}, then: {error}"))

    def _hear(self, follower: _Follower, what: Arrival | Farewell) -> None:
        if isinstance(what, Arrival):
            follower.heard = what
            return
        error = WrongState if what.diverged else TierDown
        self._lose(follower, error(f"{self._last_heard(follower)}, then left: {what.reason}"))

    def _compare(self, call: Call) -> None:
        """Breaks the group if a rank that has come is at another call, or after another step."""
        for follower in list(self._followers.values()):
            heard = follower.heard
            if heard is None or heard.number != self.number:
                continue
            if heard.call != call or heard.steps != self.steps:
                theirs = divergence(follower.rank, heard.call, heard.steps)
                ours = divergence(0, call, self.steps)
                self._broken = WrongState(f"call {self.number}: {theirs}, {ours}")

    def _last_heard(self, follower: _Follower) -> str:
        heard = follower.heard
        if heard is None:
            return f"rank {follower.rank} has come to no call"
        after = f"after {heard.steps} steps"
        return f"rank {follower.rank} came to decision {heard.number}, {heard.call}, {after}"

    def _lose(self, follower: _Follower, error: HisparseError) -> None:
        self._broken = self._broken or error
        self._forget(follower)

    def _forget(self, follower: _Follower) -> None:
        descriptor = follower.link.fileno()
        self._poll.unregister(descriptor)
        del self._followers[descriptor]
        follower.link.close()
