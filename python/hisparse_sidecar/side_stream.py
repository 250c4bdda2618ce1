"""A second stream: work that no layer of the step waits for, done beside the layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StreamMark:
    """A place in a stream: whether all that was launched before it is done."""

    event: torch.cuda.Event | None

    @property
    def has_passed(self) -> bool:
        """Without waiting; on the CPU always."""
        return self.event is None or self.event.query()

    def wait(self) -> None:
        """What is launched on the current stream from now on begins after what was before it."""
        if self.event is not None:
            self.event.wait()


class SideStream:
    """Runs work beside the current stream; `join` before anything looks at what it does.

    On the CPU there is one order only: the work runs where it is called. Whoever captures a layer
    in a graph joins before the capture ends.
    """

    def __init__(self, device: torch.device, *, goes_first: bool = False) -> None:
        """A stream of a device.

        Args:
            device: whose stream.
            goes_first: its work takes multiprocessors that get free before other streams' does.
        """
        self._device = device
        priority = -1 if goes_first else 0
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device, priority=priority) if is_cuda else None

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is launched inside begins after all that was launched before.

        Tensors that it uses must be held until the streams are joined.
        """
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """What is launched from now on begins after the work beside is done."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._device)
        if torch.cuda.is_current_stream_capturing():
            self._stream.wait_stream(current)  # a graph may wait for what is in it alone
        current.wait_stream(self._stream)

    def mark(self) -> StreamMark:
        """The place behind what was launched beside so far."""
        if self._stream is None:
            return StreamMark(None)
        event = torch.cuda.Event()
        event.record(self._stream)
        return StreamMark(event)

    def synchronize(self) -> None:
        """Waits for all work beside."""
        if self._stream is not None:
            self._stream.synchronize()
