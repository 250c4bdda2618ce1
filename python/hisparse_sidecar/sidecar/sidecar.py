"""The sidecar in process: sequences over the tiers, and the steps that decode or prefill them."""

from copy import deepcopy
from types import TracebackType

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.backends import runs_on_its_device
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.ranks import RankPlace
from hisparse_sidecar.requirements import require
from hisparse_sidecar.selection.gate_table import GateTable
from hisparse_sidecar.sidecar.sequence_calls import SequenceCalls
from hisparse_sidecar.sidecar.step_calls import StepCalls
from hisparse_sidecar.stats import SidecarStats, TierBytes, add_tier_bytes, tier_bytes
from hisparse_sidecar.tiers.host_memory import HostMemory
from hisparse_sidecar.tiers.integrity import check_sequence


class Sidecar(SequenceCalls, StepCalls):
    """Owns all tiers and every open sequence. Calls come from one thread at a time.

    A step goes `begin_step`, `run_layer` for each layer, `commit_step`; `abort_step` instead of the
    commit puts every sequence back to where the step found it.

    Attributes:
        config: what it was built for.
        device: where the device tier lives; outputs are there.
    """

    def __init__(
        self,
        config: SidecarConfig,
        place: RankPlace | None = None,
        *,
        remote_tier: object | None = None,
    ) -> None:
        """Makes every tier, see `build_tiers`; on CUDA the host pool is pinned until `close`.

        With a `place`, several processes share one host pool: each makes the same calls of this
        class in the same order, and a call that differs raises WrongState on every rank.
        """
        super().__init__(config, place, remote_tier)

    # -- the gate -----------------------------------------------------------------------------

    def gate_table(self) -> tuple[GateTable | None, int]:
        """Measured times that choose between flat and HISA (None = HISA always), and their epoch.

        Ranks of one model must choose alike: one reads its table, and all of them, itself
        included, adopt it with epoch + 1. Until a rank adopts one, it has what its own machine has
        for its GPU, and epoch 0.
        """
        return self._policy.gate.table, self._policy.gate.epoch

    def adopt_gate_table(self, table: GateTable | None, epoch: int) -> None:
        """Takes the table that all ranks agree on, from the next step on.

        Args:
            table: as one rank's `gate_table` has it.
            epoch: above the present one; the same on all ranks.

        Raises:
            WrongState: a step is open, or `epoch` is not above the present one; nothing has
                changed.
        """
        self._require_no_step("adopt a gate table")
        self._policy.gate.adopt(table, epoch)

    # -- what is held -------------------------------------------------------------------------

    def tier_bytes(self, sequence: int) -> TierBytes:
        """Bytes that the sequence holds in each tier; pages shared with a fork count in both."""
        if self._manager.rests(sequence):
            return add_tier_bytes([])
        pages = len(self._manager.host_pages(sequence))
        return tier_bytes(self.config, self._manager.ranges(sequence), pages)

    @property
    def host(self) -> HostMemory:
        """The host tier's tensors; what is written there is what later steps read.

        On CUDA they are tensors of the device; `HostMemory.on_cpu` has those of the CPU.
        """
        return self._tiers.host

    def host_row_id(self, sequence: int, position: int) -> int:
        """Row of the host tier's arrays that holds a token: page * 64 + offset.

        Raises:
            InvalidArgument: the sequence has no such token.
        """
        length = self._manager.length(sequence)
        message = f"position is {position}, sequence {sequence} has {length} tokens"
        require(0 <= position < length, message)
        page = self._manager.host_pages(sequence)[position // PAGE_TOKENS]
        return page * PAGE_TOKENS + position % PAGE_TOKENS

    def stats(self) -> SidecarStats:
        """A snapshot of the counters and of the bytes held; an open step's traffic is not in it."""
        held = add_tier_bytes([self.tier_bytes(sequence) for sequence in self._options])
        return SidecarStats(
            core=self._manager.stats(),
            groups=tuple(deepcopy(self._traffic)),
            steps=self._steps_committed,
            aborted_steps=self._steps_aborted,
            held=held,
        )

    @runs_on_its_device
    def check_integrity(self) -> None:
        """Raises HisparseError that names the first invariant found broken."""
        self._require_open()
        self._manager.check_integrity()
        for sequence in self._options:
            if not self._manager.rests(sequence):
                check_sequence(self._tiers, sequence)

    @runs_on_its_device
    def close(self) -> None:
        """Closes every sequence and gives the host pool back; a second call does nothing.

        It waits for no other rank, and no rank can begin a step after it.

        Raises:
            WrongState: a tensor of the host tier is still held; let go of it and close again.
        """
        if self._closed:
            self._tiers.host.close()
            return
        self._tiers.ranks.leave()
        if self._step:
            self.abort_step()
        for sequence in list(self._options):
            self.close_sequence(sequence)
        self._closed = True
        self._tiers.lower.close()
        self._tiers.host.close()

    def __enter__(self) -> "Sidecar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except WrongState:
            if error is None:  # else its frames hold tensors until it is handled: let it through
                raise
