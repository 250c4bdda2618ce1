"""The tiers below the host pool, and the sequences that are opened and brought back over them."""

from collections.abc import Sequence

from hisparse_sidecar._core import FileTier, Hierarchy, Returning, TierState
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.config.sequence import DeviceSlots
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.ranks import SequenceMoves
from hisparse_sidecar.tiers.open_tiers import OpenTiers
from hisparse_sidecar.tiers.prefill_rate import PrefillRate


class LowerTiers:
    """Moves the pages of a manager between the host pool and what lies below it.

    Attributes:
        moves: what opens sequences and brings them back: the core's mover, or a rank's share of it.
        rate: what the engine prefills, which decides what is worth loading.
    """

    def __init__(
        self,
        config: SidecarConfig,
        moves: SequenceMoves,
        opened: OpenTiers | None,
    ) -> None:
        """Takes charge of what was opened; None = rank 0 has it."""
        self.moves, self.rate = moves, PrefillRate(config.tiers.recompute_tokens_per_second)
        self._config = config.tiers
        self._opened = opened

    def open_prompt(
        self,
        tenant: str,
        token_ids: Sequence[int],
        max_new_tokens: int,
        device_slots: DeviceSlots,
    ) -> tuple[int, int]:
        """See `Hierarchy.open_prompt`."""
        return self.moves.open_prompt(
            tenant,
            token_ids,
            max_new_tokens,
            **device_slots,
            deadline_seconds=self._config.load_seconds,
            recompute_tokens_per_second=self.rate.tokens_per_second,
        )

    def open_sequence(
        self, prompt_tokens: int, max_new_tokens: int, device_slots: DeviceSlots
    ) -> int:
        """See `Hierarchy.open_sequence`."""
        return self.moves.open_sequence(
            prompt_tokens,
            max_new_tokens,
            **device_slots,
            deadline_seconds=self._config.load_seconds,
        )

    def fork(
        self, sequence: int, length: int, max_new_tokens: int, device_slots: DeviceSlots
    ) -> int:
        """See `Hierarchy.fork`."""
        return self.moves.fork(
            sequence,
            length,
            max_new_tokens,
            **device_slots,
            deadline_seconds=self._config.load_seconds,
        )

    def resume(self, sequence: int, device_slots: DeviceSlots) -> int:
        """See `Hierarchy.resume`."""
        return self.moves.resume(
            sequence,
            **device_slots,
            deadline_seconds=self._config.load_seconds,
        )

    # -- calls in two halves, of which the second waits for nothing; ranks decide whole calls -----

    def make_room_to_fork(self, length: int, max_new_tokens: int, seconds: float) -> None:
        """See `Hierarchy.make_room_to_fork`."""
        self._own_hierarchy.make_room_to_fork(length, max_new_tokens, deadline_seconds=seconds)

    def fork_at_once(
        self, sequence: int, length: int, max_new_tokens: int, device_slots: DeviceSlots
    ) -> int:
        """As `fork`; HostPoolFull where it would have to wait."""
        fork = self._own_hierarchy.fork
        return fork(sequence, length, max_new_tokens, **device_slots, deadline_seconds=0.0)

    def bring_back(self, sequence: int, seconds: float) -> Returning:
        """See `Hierarchy.bring_back`."""
        return self._own_hierarchy.bring_back(sequence, deadline_seconds=seconds)

    def finish_resume(self, returning: Returning, device_slots: DeviceSlots) -> int:
        """See `Hierarchy.finish_resume`."""
        return self._own_hierarchy.finish_resume(returning, **device_slots)

    @property
    def _own_hierarchy(self) -> Hierarchy:
        if self._opened is None or self.moves is not self._opened.hierarchy:
            raise WrongState("the host pool is shared by ranks, halves of calls need 1")
        return self._opened.hierarchy

    @property
    def states(self) -> list[TierState]:
        """Every lower tier, the nearest first; none where rank 0 has them."""
        return self._opened.hierarchy.state() if self._opened else []

    @property
    def files(self) -> FileTier | None:
        """The file tier; None without one, and once closed."""
        return self._opened.files if self._opened else None

    def wake(self) -> None:
        """See `Hierarchy.wake`; nothing where rank 0 has it."""
        if self._opened:
            self._opened.hierarchy.wake()

    def close(self) -> None:
        """Ends the threads and leaves the remote store; files keep what was flushed."""
        if self._opened:
            self._opened.close()
