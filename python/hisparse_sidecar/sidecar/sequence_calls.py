"""The life of sequences over all tiers: forked, cut, at rest, closed."""

from collections.abc import Callable
from contextlib import suppress

from hisparse_sidecar._core import PrefixStats, Returning, TierState
from hisparse_sidecar.backends import runs_on_its_device
from hisparse_sidecar.config.sequence import DeviceSlots
from hisparse_sidecar.errors import HisparseError, WrongState
from hisparse_sidecar.sidecar.opening_calls import OpeningCalls
from hisparse_sidecar.sidecar.restore import restore_sequence
from hisparse_sidecar.sidecar.rollback import resum_open_blocks, roll_back

_Fork = Callable[[int, int, int, DeviceSlots], int]


class SequenceCalls(OpeningCalls):
    """The calls of `Sidecar` that concern whole sequences, their tenants and lower tiers."""

    def preempt(self, sequence: int) -> None:
        """Lets a sequence rest: all that it has on the device, and what it was promised, is free.

        Its tokens are kept, in the host pool or below it, until `resume` or `close_sequence`.

        Raises:
            UnknownSequence, StaleHandle: no such sequence.
            WrongState: it rests, or a step is open.
        """
        self._require_open()
        self._require_no_step("preempt")
        self._manager.preempt(sequence)
        self._tiers.loaded.forget(sequence)
        self._tiers.lower.wake()

    @runs_on_its_device
    def resume(self, sequence: int) -> int:
        """Makes a preempted sequence ready for steps again.

        Returns:
            Its length: what it was, or, where a tier has lost pages, the tokens before these.

        Raises:
            UnknownSequence, StaleHandle: no such sequence.
            WrongState: it does not rest, or a step is open.
            HostPoolFull, DeviceArenaFull, TierFull: no room yet; it rests as before.
            TierDown, DeadlinePassed: a tier did not give out its pages; it rests as before.
        """
        self._require_open()
        self._require_no_step("resume")
        length = self._tiers.lower.resume(sequence, self._slots_of(sequence))
        self._restore_or_rest(sequence)
        return length

    def bring_back(self, sequence: int, seconds: float) -> Returning:
        """The first half of `resume`, from any thread; the sequence rests as before.

        Args:
            sequence: one that rests.
            seconds: how long it may wait for lower tiers.

        Returns:
            Its pages, which stay in the host pool for `finish_resume`, or until `let_go`.
        """
        self._require_open()
        return self._tiers.lower.bring_back(sequence, seconds)

    def let_go(self, returning: Returning) -> None:
        """What `bring_back` gave is not needed any more; from any thread."""
        returning.release()
        with suppress(WrongState):  # closed meanwhile
            self._tiers.lower.wake()

    @runs_on_its_device
    def finish_resume(self, returning: Returning) -> int:
        """The second half of `resume`: it waits for nothing, and HostPoolFull may come sooner.

        Raises:
            WrongState: it does not rest, it has rested anew since, or a step is open.
        """
        self._require_open()
        self._require_no_step("resume")
        sequence = returning.sequence
        length = self._tiers.lower.finish_resume(returning, self._slots_of(sequence))
        self._restore_or_rest(sequence)
        return length

    @runs_on_its_device
    def fork(self, sequence: int, length: int, max_new_tokens: int) -> int:
        """Opens a sequence that starts with the first `length` tokens of another; pages are shared.

        Raises:
            UnknownSequence, StaleHandle: no such sequence.
            InvalidArgument: `length` is not within the sequence.
            WrongState: a step is open.
            HostPoolFull, DeviceArenaFull: not admitted; nothing is held.
        """
        return self._fork(self._tiers.lower.fork, sequence, length, max_new_tokens)

    def make_room_to_fork(self, length: int, max_new_tokens: int, seconds: float) -> None:
        """The first half of `fork`, from any thread: what it will need, as far as time allows."""
        self._require_open()
        self._tiers.lower.make_room_to_fork(length, max_new_tokens, seconds)

    @runs_on_its_device
    def fork_at_once(self, sequence: int, length: int, max_new_tokens: int) -> int:
        """The second half of `fork`: it waits for nothing, and HostPoolFull may come sooner."""
        return self._fork(self._tiers.lower.fork_at_once, sequence, length, max_new_tokens)

    @runs_on_its_device
    def truncate(self, sequence: int, length: int) -> None:
        """Forgets every token from position `length` on: rejected draft tokens, say.

        Raises:
            UnknownSequence, StaleHandle: no such sequence.
            InvalidArgument: `length` is beyond the sequence.
            HostPoolFull: forks keep the pages, and too few are left to promise in their place.
            TierFull: forks keep the pages, and the tenant's quota has no room for others.
            WrongState: a step is open.
        """
        self._require_open()
        self._require_no_step("truncate")
        roll_back(self._tiers, sequence, length)

    def close_sequence(self, sequence: int) -> None:
        """Gives back everything that the sequence holds.

        Raises:
            UnknownSequence, StaleHandle: no such sequence.
            WrongState: the sequence has rows in the open step.
        """
        self._require_open()
        if self._step and any(member.handle == sequence for member in self._step.sequences):
            raise WrongState(f"sequence {sequence} is in step {self._step.number}, end it first")
        self._manager.close(sequence)
        self._tiers.loaded.forget(sequence)
        del self._options[sequence]
        self._tiers.lower.wake()

    def length(self, sequence: int) -> int:
        """Tokens of the sequence, those of an open step included."""
        return self._manager.length(sequence)

    def admitted_tokens(self, sequence: int) -> int:
        """Most tokens that the sequence may reach."""
        return self._manager.admitted_tokens(sequence)

    def _slots_of(self, sequence: int) -> DeviceSlots:
        options = self._options.get(sequence)
        # without options there is no such sequence, which is for the core to refuse
        return (
            options.device_slots(self.config) if options else DeviceSlots(slots=1, window_slots=0)
        )

    def _fork(self, fork: _Fork, sequence: int, length: int, max_new_tokens: int) -> int:
        self._require_open()
        self._require_no_step("fork")
        source = self._manager.ranges(sequence)
        options = self._options[sequence]
        child = fork(sequence, length, max_new_tokens, options.device_slots(self.config))
        try:
            ranges = self._manager.ranges(child)
            self._tiers.device.reset(ranges)
            self._tiers.device.copy_pooled(source, ranges)
            resum_open_blocks(self._tiers, ranges, self._manager.host_pages(child), length)
        except BaseException:
            self._manager.close(child)  # nobody knows it
            raise
        self._options[child] = options
        return child

    def _restore_or_rest(self, sequence: int) -> None:
        """What the core made active is made ready on the device, or rests again."""
        try:
            restore_sequence(self._tiers, sequence)
        except BaseException:
            with suppress(HisparseError):  # the first error is the one to tell
                self._manager.preempt(sequence)
            raise

    # -- tenants and lower tiers --------------------------------------------------------------

    def add_tenant(self, name: str, quota_pages: int | None = None) -> None:
        """Adds a tenant whose sequences may have so many host pages; None = no limit.

        Raises:
            WrongState: the name is known.
        """
        self._manager.add_tenant(name, quota_pages)

    def set_tenant_quota(self, name: str, quota_pages: int | None) -> None:
        """Changes a quota, that of "" too; what the tenant has beyond it stays until it is closed.

        Raises:
            InvalidArgument: no such tenant.
        """
        self._manager.set_quota(name, quota_pages)

    def tenant_usage(self, name: str) -> tuple[int, int | None]:
        """(host pages that count for the tenant, its quota); InvalidArgument if it is unknown."""
        return self._manager.tenant_usage(name)

    def prefix_stats(self) -> PrefixStats:
        """What is known of pages that prompts may find, in all tiers; looks at every page.

        Raises:
            WrongState: this is a rank that follows; rank 0 knows.
        """
        return self._manager.prefix_stats()

    def lower_tiers(self) -> list[TierState]:
        """The tiers below the host pool, the nearest first; a degraded one is tried again.

        A rank that follows has none: they are rank 0's.
        """
        return self._tiers.lower.states

    def evict_idle(self, num_pages: int) -> int:
        """Gives up to so many idle host pages up at once, those without a copy below for good."""
        return self._manager.evict(num_pages)

    def flush(self, deadline_seconds: float) -> None:
        """Returns once every page that has left the host pool is as durable as its tier makes it.

        Raises:
            DeadlinePassed, TierDown: not all are.
        """
        self._require_open()
        self._tiers.lower.moves.flush(deadline_seconds)

    def drain(self, deadline_seconds: float) -> tuple[int, int]:
        """Writes what is not in use to the lower tiers and flushes: a restart finds it again.

        Returns:
            (host pages that are free by it, pages that stay in the host pool).
        """
        self._require_open()
        return self._tiers.lower.moves.drain(deadline_seconds)
