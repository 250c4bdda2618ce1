"""What the coordinator asks of a prefix cache, where there is none."""

from typing import Any

from hisparse_sidecar.engine_rows import EngineRowTier
from hisparse_sidecar.engines.sglang.offload.requests import prefilled_tokens


class NoPrefixes:
    """Each request is computed from its first token on; `HostRadixCache` has the same calls."""

    @property
    def evictable_slots(self) -> int:
        """Slots of the cache that eviction would free."""
        return 0

    def open_for(self, tier: EngineRowTier, req: Any, to_come: int) -> int:  # noqa: ANN401
        """Admits a request whose prefill is done.

        Raises:
            HostPoolFull, DeviceArenaFull: not admitted; nothing is held.
        """
        return tier.open(prefilled_tokens(req), to_come)

    def loaded_tokens(self, req: Any) -> int:  # noqa: ANN401
        """Tokens whose rows in the pool others may have, too."""
        return 0

    def end_load(self, req: Any) -> None:  # noqa: ANN401
        """The request needs these rows no more."""

    def end_left_loads(self) -> None:
        """Ends loads of requests that were not let in."""

    def keep_prompt(self, req: Any, sequence: int) -> None:  # noqa: ANN401
        """The prompt's rows are on the host."""

    def leave(self, req: Any, sequence: int, num_tokens: int) -> None:  # noqa: ANN401
        """The request ends, and its sequence is closed next."""

    def first_own_token(self, req: Any) -> int:  # noqa: ANN401
        """Tokens from the first on whose slots are not the request's."""
        return 0

    def make_slot_room(self, num_slots: int) -> None:
        """Frees slots, as far as that is possible."""

    def check_integrity(self) -> None:
        """There is nothing that could be broken."""
