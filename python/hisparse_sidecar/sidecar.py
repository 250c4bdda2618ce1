"""The sidecar in process: sequences over the tiers, and the steps that decode or prefill them."""

from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from types import TracebackType

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.backends import runs_on_its_device
from hisparse_sidecar.build_step import build_step
from hisparse_sidecar.checks import check_step_rows
from hisparse_sidecar.config import SelectionConfig, SidecarConfig, require
from hisparse_sidecar.errors import HisparseError, WrongState
from hisparse_sidecar.host_memory import HostMemory
from hisparse_sidecar.integrity import check_sequence
from hisparse_sidecar.layer_io import LayerInputs, LayerOutputs
from hisparse_sidecar.pipeline import LayerPipeline
from hisparse_sidecar.rollback import forget_touched, resum_open_blocks, roll_back
from hisparse_sidecar.selection.gate_table import GateTable
from hisparse_sidecar.selection.policy import policy_for
from hisparse_sidecar.sequence_options import SequenceOptions
from hisparse_sidecar.stats import GroupTraffic, SidecarStats, TierBytes, add_tier_bytes, tier_bytes
from hisparse_sidecar.step import MAX_STEPS, Step, StepKind, StepSequence
from hisparse_sidecar.tiers import build_tiers


class Sidecar:
    """Owns both tiers and every open sequence. Calls come from one thread at a time.

    A step goes `begin_step`, `run_layer` for each layer, `commit_step`; `abort_step` instead of the
    commit puts every sequence back to where the step found it.

    Attributes:
        config: what it was built for.
        device: where the device tier lives; outputs are there.
    """

    def __init__(self, config: SidecarConfig) -> None:
        """Makes both tiers, see `build_tiers`; on CUDA the host pool is pinned until `close`."""
        self.config = config
        # first: what it refuses must not leave a host pool behind
        self._policy = policy = policy_for(config)
        self._tiers = build_tiers(config)
        self._manager, self.device = self._tiers.manager, self._tiers.device.device
        self._traffic = [GroupTraffic() for _ in config.model.anchors]
        self._pipeline = LayerPipeline(self._tiers, self._traffic, policy)
        self._options: dict[int, SequenceOptions] = {}
        self._step: Step | None = None
        self._closed = False
        self._steps_begun = self._steps_committed = self._steps_aborted = 0

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

    # -- sequences ----------------------------------------------------------------------------

    @runs_on_its_device
    def open(
        self,
        prompt_tokens: int,
        max_new_tokens: int,
        *,
        selection: SelectionConfig | None = None,
        hot_slots: int | None = None,
        window_blocks: int | None = None,
    ) -> int:
        """Admits a sequence: host pages for prompt + max_new_tokens and its device ranges.

        Args:
            prompt_tokens: tokens that prefill will append.
            max_new_tokens: most tokens that decoding will append.
            selection: how its top-k is found; default: the config's.
            hot_slots: KV rows on the device, a layer; default: the config's.
            window_blocks: index-key blocks on the device, an anchor layer; default: the config's.

        Returns:
            The handle of the sequence.

        Raises:
            InvalidArgument: a count is out of range or too small for the selection.
            HostPoolFull, DeviceArenaFull: not admitted; nothing is held.
        """
        config = self.config
        options = SequenceOptions(
            selection or config.selection,
            config.default_hot_slots if hot_slots is None else hot_slots,
            config.window_blocks if window_blocks is None else window_blocks,
        )
        self._require_open()
        options.check_for(config)
        slots, window_slots = options.device_slots(config)
        sequence = self._manager.open_sequence(
            prompt_tokens, max_new_tokens, slots=slots, window_slots=window_slots
        )
        self._options[sequence] = options
        self._tiers.device.reset(self._manager.ranges(sequence))
        return sequence

    @runs_on_its_device
    def fork(self, sequence: int, length: int, max_new_tokens: int) -> int:
        """Opens a sequence that starts with the first `length` tokens of another; pages are shared.

        Raises:
            UnknownSequence, StaleHandle: no such sequence.
            InvalidArgument: `length` is not within the sequence.
            WrongState: a step is open.
            HostPoolFull, DeviceArenaFull: not admitted; nothing is held.
        """
        self._require_open()
        self._require_no_step("fork")
        source = self._manager.ranges(sequence)
        options = self._options[sequence]
        slots, window_slots = options.device_slots(self.config)
        child = self._manager.fork(
            sequence, length, max_new_tokens, slots=slots, window_slots=window_slots
        )
        self._options[child] = options
        ranges = self._manager.ranges(child)
        self._tiers.device.reset(ranges)
        self._tiers.device.copy_pooled(source, ranges)
        resum_open_blocks(self._tiers, ranges, self._manager.host_pages(child), length)
        return child

    @runs_on_its_device
    def truncate(self, sequence: int, length: int) -> None:
        """Forgets every token from position `length` on: rejected draft tokens, say.

        Raises:
            UnknownSequence, StaleHandle: no such sequence.
            InvalidArgument: `length` is beyond the sequence.
            HostPoolFull: forks keep the pages, and too few are left to promise in their place.
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

    def length(self, sequence: int) -> int:
        """Tokens of the sequence, those of an open step included."""
        return self._manager.length(sequence)

    def admitted_tokens(self, sequence: int) -> int:
        """Most tokens that the sequence may reach."""
        return self._manager.admitted_tokens(sequence)

    # -- steps --------------------------------------------------------------------------------

    @runs_on_its_device
    def begin_step(
        self,
        rows: Sequence[tuple[int, int]],
        kind: StepKind,
        *,
        padded_rows: int | None = None,
    ) -> Step:
        """Appends rows to sequences: (sequence, number of new rows) each, packed in this order.

        Args:
            rows: the sequences, each once, with 1 or more new rows.
            kind: "decode" (at most max_step_rows rows a sequence) or "prefill".
            padded_rows: rows of every tensor, the surplus at the end is padding; default: none.

        Raises:
            InvalidArgument: a row count is out of range or beyond the admitted length.
            UnknownSequence, StaleHandle: no such sequence.
            WrongState: another step is open.
        """
        self._require_open()
        self._require_no_step("begin a step")
        check_step_rows(self.config, rows, kind, padded_rows)
        if self._steps_begun >= MAX_STEPS:
            raise WrongState(
                f"{self._steps_begun} steps have begun, LRU stamps last for {MAX_STEPS}"
            )
        starts: list[int] = []
        try:
            for sequence, count in rows:
                starts.append(self._manager.append(sequence, count))
            self._step = self._build_step(rows, starts, kind, padded_rows)
        except BaseException:  # whatever it was, no sequence has grown
            for (sequence, _), start in zip(rows, starts, strict=False):
                self._manager.truncate(sequence, start)
            raise
        self._steps_begun += 1
        return self._step

    @runs_on_its_device
    def run_layer(self, layer: int, inputs: LayerInputs) -> LayerOutputs:
        """Runs one layer of the open step; see `LayerPipeline.run_layer`.

        Inputs on another device are copied. A call refused with InvalidArgument or WrongState may
        be made again, corrected; after any other error only `abort_step` is legal.
        """
        step = self._open_step("run a layer")
        with torch.no_grad():
            return self._pipeline.run_layer(step, layer, inputs.to(self.device))

    @property
    def has_open_step(self) -> bool:
        """Whether a step was begun and not ended."""
        return self._step is not None

    @runs_on_its_device
    def commit_step(self) -> None:
        """Keeps the rows of the open step; on CUDA waits until they are in the host pool.

        Raises:
            WrongState: no step is open, or a layer has not run; the step stays open.
            InvalidArgument: on CUDA, an index input was not finite, and says which; then only
                `abort_step` is legal. So it is where a WrongState says to abort the step.
        """
        step = self._open_step("commit")
        num_layers, done = self.config.model.num_layers, len(step.layers_done)
        if done != num_layers:
            raise WrongState(f"step {step.number} ran {done} layers, the model has {num_layers}")
        self._tiers.side.join()
        step.watch.read(step.row_seq)
        self._step = None
        self._steps_committed += 1

    @runs_on_its_device
    def abort_step(self) -> None:
        """Puts every sequence of the open step back to its length before.

        Raises:
            WrongState: no step is open.
        """
        step = self._open_step("abort")
        self._step = None
        self._steps_aborted += 1
        self._tiers.side.join()
        with suppress(HisparseError):  # whatever was wrong is put back
            step.watch.read(step.row_seq)
        forget_touched(self._tiers, step)
        for member in step.sequences:
            self._tiers.loaded.forget(member.handle)
            roll_back(self._tiers, member.handle, member.start)

    def _require_open(self) -> None:
        if self._closed:
            raise WrongState("the sidecar is closed, its host pool is 0 bytes")

    def _require_no_step(self, what: str) -> None:
        if self._step:
            raise WrongState(f"cannot {what} while step {self._step.number} is open, end it first")

    def _open_step(self, what: str) -> Step:
        self._require_open()
        if self._step is None:
            raise WrongState(f"cannot {what}: no step is open, {self._steps_begun} have ended")
        return self._step

    def _build_step(
        self,
        rows: Sequence[tuple[int, int]],
        starts: list[int],
        kind: StepKind,
        padded_rows: int | None,
    ) -> Step:
        members = [
            self._member(sequence, start, count)
            for (sequence, count), start in zip(rows, starts, strict=True)
        ]
        total = sum(count for _, count in rows)
        number = self._steps_begun + 1
        return build_step(self.config, kind, number, members, padded_rows or total, self.device)

    def _member(self, sequence: int, start: int, count: int) -> StepSequence:
        pages, ranges = self._manager.host_pages(sequence), self._manager.ranges(sequence)
        selection = self._options[sequence].selection
        return StepSequence(sequence, start, count, pages, ranges, selection)

    # -- what is held -------------------------------------------------------------------------

    def tier_bytes(self, sequence: int) -> TierBytes:
        """Bytes that the sequence holds in each tier; pages shared with a fork count in both."""
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
            check_sequence(self._tiers, sequence)

    @runs_on_its_device
    def close(self) -> None:
        """Closes every sequence and gives the host pool back; a second call does nothing.

        Raises:
            WrongState: a tensor of the host tier is still held; let go of it and close again.
        """
        if self._closed:
            self._tiers.host.close()
            return
        if self._step:
            self.abort_step()
        for sequence in list(self._options):
            self.close_sequence(sequence)
        self._closed = True
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
