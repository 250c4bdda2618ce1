"""All layers of decode steps in one CUDA graph: captured once, replayed for all of a frame."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from hisparse_sidecar.errors import InvalidArgument, WrongState
from hisparse_sidecar.layer_io import LayerInputs, LayerOutputs
from hisparse_sidecar.pipeline.pipeline import LayerPipeline
from hisparse_sidecar.step.frame import StepFrame
from hisparse_sidecar.step.step import GroupStep, Step
from hisparse_sidecar.step.watch import StepWatch

Outputs = tuple[LayerOutputs, ...]


class Recording(Protocol):
    """Device work that can be done again, on the same tensors."""

    def record(self, work: Callable[[], None]) -> None:
        """Does `work`, and remembers what it gave the device to do."""

    def replay(self) -> None:
        """Gives the device the same to do again."""


class CudaRecording:
    """A CUDA graph."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], None]) -> None:
        """See `Recording`; whatever `work` needs compiled is."""
        with torch.cuda.graph(self._graph):
            work()
        self._graph.replay()  # to capture is not to run

    def replay(self) -> None:
        """See `Recording`."""
        self._graph.replay()


def recording_for(device: torch.device) -> Recording | None:
    """A new recording; None where there is none: then every step runs layer by layer."""
    return CudaRecording() if device.type == "cuda" else None


@dataclass(frozen=True)
class _Recorded:
    """What every replay works on and leaves: the same tensors.

    Attributes:
        recording: of all layers.
        outputs: of each layer.
        groups: what the anchors left.
        watch: what the layers left to be looked at.
        epoch: of the gate's table, which chose the path.
    """

    recording: Recording
    outputs: Outputs
    groups: tuple[GroupStep, ...]
    watch: StepWatch
    epoch: int


class StepGraph:
    """Runs all layers of the open step, whose inputs and tables lie where they did the last time.

    The first run goes layer by layer, which compiles; the second is captured; all later ones are
    one replay. A table of the gate that is adopted starts that over.
    """

    def __init__(
        self, pipeline: LayerPipeline, frame: StepFrame, inputs: Sequence[LayerInputs]
    ) -> None:
        """Holds what the layers will read.

        Args:
            pipeline: runs the layers.
            frame: of the steps.
            inputs: of each layer, `frame.rows` rows, on the device: what they hold when a step runs
                are its inputs.

        Raises:
            InvalidArgument: there are not as many inputs as layers, or they lie elsewhere.
        """
        found, needed = len(inputs), pipeline.num_layers
        if found != needed:
            raise InvalidArgument(f"a graph has inputs of {found} layers, the model has {needed}")
        for layer, one in enumerate(inputs):
            if one.to(pipeline.device) is not one:
                message = f"inputs of layer {layer} lie elsewhere, a graph needs {pipeline.device}"
                raise InvalidArgument(message)
        self._pipeline, self._frame, self._inputs = pipeline, frame, tuple(inputs)
        self._recorded: _Recorded | None = None
        self._warm_epoch: int | None = None

    def run(self, step: Step) -> Outputs:
        """Runs every layer of `step`; the outputs are overwritten by the next run.

        Raises:
            WrongState: the step is of another frame, or has run a layer; nothing has changed.
        """
        if step.frame is not self._frame or step.layers_done:
            frame, done = "this" if step.frame is self._frame else "another", len(step.layers_done)
            found = f"step {step.number} is of {frame} frame and ran {done} layers"
            raise WrongState(f"{found}, a graph needs a step of its own frame that ran 0")
        self._pipeline.load_windows(step)
        epoch = self._pipeline.gate_epoch
        if self._recorded is not None and self._recorded.epoch == epoch:
            return self._replayed(step, self._recorded)
        self._recorded, is_warm, self._warm_epoch = None, self._warm_epoch == epoch, epoch
        recording = recording_for(self._pipeline.device) if is_warm else None
        if recording is None:
            return self._layer_by_layer(step)
        self._recorded = self._record(step, recording, epoch)
        return self._recorded.outputs

    def _layer_by_layer(self, step: Step) -> Outputs:
        run, inputs = self._pipeline.run_layer, self._inputs
        return tuple(run(step, layer, given) for layer, given in enumerate(inputs))

    def _record(self, step: Step, recording: Recording, epoch: int) -> _Recorded:
        before, step.watch = step.watch, StepWatch()
        outputs: list[LayerOutputs] = []

        def work() -> None:
            outputs.extend(self._layer_by_layer(step))
            self._pipeline.join_side()

        recording.record(work)
        watch = step.watch
        step.watch = before.joined(watch)
        return _Recorded(recording, tuple(outputs), tuple(step.groups), watch, epoch)

    def _replayed(self, step: Step, recorded: _Recorded) -> Outputs:
        for layer in range(len(self._inputs)):
            self._pipeline.note_layer(step, layer)
        step.groups[:] = recorded.groups
        step.watch = step.watch.joined(recorded.watch)
        recorded.recording.replay()
        return recorded.outputs
