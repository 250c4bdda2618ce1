"""Steps: begun, run layer by layer, committed or put back."""

from collections.abc import Sequence
from contextlib import suppress

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.backends import runs_on_its_device
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import HisparseError, WrongState
from hisparse_sidecar.layer_io import LayerInputs, LayerOutputs
from hisparse_sidecar.pipeline.step_graph import StepGraph
from hisparse_sidecar.requirements import require
from hisparse_sidecar.sidecar.rollback import forget_touched, roll_back
from hisparse_sidecar.sidecar.state import SidecarState
from hisparse_sidecar.step.build import build_step
from hisparse_sidecar.step.checks import check_step_rows, check_token_ids
from hisparse_sidecar.step.frame import StepFrame
from hisparse_sidecar.step.step import MAX_STEPS, Step, StepKind, StepSequence


class StepCalls(SidecarState):
    """The calls of `Sidecar` that make up a step."""

    @runs_on_its_device
    def begin_step(
        self,
        rows: Sequence[tuple[int, int]],
        kind: StepKind,
        *,
        padded_rows: int | None = None,
        token_ids: Sequence[int] | None = None,
        frame: StepFrame | None = None,
    ) -> Step:
        """Appends rows to sequences: (sequence, number of new rows) each, packed in this order.

        Args:
            rows: the sequences, each once, with 1 or more new rows.
            kind: "decode" (at most max_step_rows rows a sequence) or "prefill".
            padded_rows: rows of every tensor, the surplus at the end is padding; default: none.
            token_ids: of every row but the padding. Pages of a sequence from `open_prompt` whose
                ids were all told are found by later prompts; default: not told.
            frame: where a decode step's tables go, see `step_frame`; it says `padded_rows`.

        Raises:
            InvalidArgument: a row count is out of range or beyond the admitted length, or there
                are not as many token ids as rows, or the step does not fit its frame.
            UnknownSequence, StaleHandle: no such sequence.
            WrongState: another step is open.
        """
        self._require_open()
        self._require_no_step("begin a step")
        if frame is not None:
            message = (
                f"padded_rows is {padded_rows} and kind {kind!r}, a frame needs None, 'decode'"
            )
            require(padded_rows is None and kind == "decode", message)
            padded_rows = max(frame.rows, sum(count for _, count in rows))
        check_step_rows(self.config, rows, kind, padded_rows)
        check_token_ids(rows, token_ids)
        if self._steps_begun >= MAX_STEPS:
            raise WrongState(
                f"{self._steps_begun} steps have begun, LRU stamps last for {MAX_STEPS}"
            )
        starts = self._tiers.ranks.append_rows(rows, token_ids)
        try:
            self._step = self._build_step(rows, starts, kind, padded_rows, frame)
        except BaseException:  # whatever it was, no sequence has grown
            for (sequence, _), start in zip(rows, starts, strict=True):
                self._manager.truncate(sequence, start)
            raise
        self._steps_begun += 1
        if kind == "prefill":
            self._tiers.lower.rate.begin()
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

    def step_frame(
        self,
        rows: int,
        max_tokens: int,
        *,
        sequences: int | None = None,
        selection: SelectionConfig | None = None,
    ) -> StepFrame:
        """Places for the tables of decode steps that one `StepGraph` runs.

        Args:
            rows: of every step, padding included.
            max_tokens: most of a sequence in them. Scores of flat selection are as long.
            sequences: most of a step; default: as many as rows.
            selection: of every sequence in them; default: the config's.

        Raises:
            InvalidArgument: see `StepFrame`, or a layer is audited.
        """
        chosen = selection or self.config.selection
        for layer in self.config.model.anchors:
            audited = self._policy.selection_of(layer, chosen).audit_one_in
            require(not audited, f"audit_one_in of layer {layer} is {audited}, a frame needs 0")
        count = rows if sequences is None else sequences
        return StepFrame(self.config, chosen, self.device, rows, count, max_tokens)

    def step_graph(self, frame: StepFrame, inputs: Sequence[LayerInputs]) -> StepGraph:
        """What runs all layers of steps of a frame, see `StepGraph`; it must not outlive this.

        Args:
            frame: of this sidecar.
            inputs: of each layer, on the device, in places that stay.
        """
        return StepGraph(self._pipeline, frame, inputs)

    @runs_on_its_device
    def run_graph(self, graph: StepGraph) -> tuple[LayerOutputs, ...]:
        """Runs every layer of the open step; see `StepGraph.run`.

        Outputs lie in the same tensors each time. After an error only `abort_step` is legal.
        """
        step = self._open_step("run a graph")
        with torch.no_grad():
            return graph.run(step)

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
        self._tiers.ranks.end_step(committed=True)
        self._step = None
        self._steps_committed += 1
        for member in step.sequences:
            if member.length // PAGE_TOKENS > member.start // PAGE_TOKENS:  # it has filled a page
                self._manager.publish(member.handle)
        if step.kind == "prefill":
            self._tiers.lower.rate.end(sum(member.num_rows for member in step.sequences))

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
        self._tiers.copies.join()  # a layer that has failed waited for none of its rows
        with suppress(HisparseError):  # whatever was wrong is put back
            step.watch.read(step.row_seq)
        self._tiers.ranks.end_step(committed=False)
        forget_touched(self._tiers, step)
        for member in step.sequences:
            self._tiers.loaded.forget(member.handle)
            roll_back(self._tiers, member.handle, member.start)

    def _build_step(
        self,
        rows: Sequence[tuple[int, int]],
        starts: list[int],
        kind: StepKind,
        padded_rows: int | None,
        frame: StepFrame | None,
    ) -> Step:
        members = [
            self._member(sequence, start, count)
            for (sequence, count), start in zip(rows, starts, strict=True)
        ]
        if frame is not None:
            frame.check(members)
        total = sum(count for _, count in rows)
        number = self._steps_begun + 1
        plan = self._tiers.ranks.plan_step(rows, padded_rows or total)
        where = self._tiers.ranks, self.device, frame
        return build_step(self.config, kind, number, members, plan, *where)

    def _member(self, sequence: int, start: int, count: int) -> StepSequence:
        ranges, selection = self._manager.ranges(sequence), self._options[sequence].selection
        return StepSequence(sequence, start, count, ranges, selection)
