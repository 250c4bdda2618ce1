"""Requests between prefill and decode: they wait for room, then for their rows to be copied."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from hisparse_sidecar.engine_rows import EngineRowTier
from hisparse_sidecar.engines.sglang.offload.requests import tokens_to_come
from hisparse_sidecar.errors import DeviceArenaFull, HostPoolFull
from hisparse_sidecar.side_stream import SideStream, StreamMark

_LOG = logging.getLogger("hisparse_sidecar.sglang")
_NONE = 0  # no handle of the core's is 0


@dataclass
class StagedRequest:
    """A request on its way; SGLang's scheduler reads `req`.

    Attributes:
        req: SGLang's request.
        sequence: our handle; 0 = waits for room.
        mark: where its rows have been copied; None = waits for room.
        held: tensors in use until then.
    """

    req: Any
    sequence: int = _NONE
    mark: StreamMark | None = None
    held: list[torch.Tensor] = field(default_factory=list)

    @property
    def is_ready(self) -> bool:
        """Whether its rows are on the host."""
        return self.mark is not None and self.mark.has_passed


class StagingQueue:
    """First come, first served; rows are copied on a stream of their own.

    Attributes:
        requests: in the order in which they came.
    """

    def __init__(
        self,
        tier: EngineRowTier,
        rows_of: Callable[[Any], torch.Tensor],
        most_tokens: int,
        open_for: Callable[[Any, int], int],
    ) -> None:
        """An empty queue.

        Args:
            tier: where the rows go.
            rows_of: of a request [prefilled tokens] int64, rows of the pool.
            most_tokens: that any request can have.
            open_for: admits a request for so many tokens to come, or raises that it is full.
        """
        self.requests: list[StagedRequest] = []
        self._tier, self._rows_of, self._most = tier, rows_of, most_tokens
        self._open_for = open_for
        self._stream, self._is_waiting = SideStream(tier.device), False

    def add(self, req: Any) -> None:  # noqa: ANN401
        """Queues a request, and begins to copy its rows if it has room and its turn."""
        self.requests.append(StagedRequest(req))
        self.copy_where_room()

    def copy_where_room(self) -> None:
        """Begins to copy rows of the requests that there is room for, in order.

        Those that are marked to end want none.
        """
        for staged in self.requests:
            if staged.mark is not None or staged.req.to_finish is not None:
                continue
            to_come = tokens_to_come(staged.req, self._most)
            try:
                staged.sequence = self._open_for(staged.req, to_come)
            except (HostPoolFull, DeviceArenaFull) as error:
                self._say_that_it_waits(error)
                return
            self._is_waiting = False
            self._copy(staged)

    def _copy(self, staged: StagedRequest) -> None:
        try:
            rows = self._rows_of(staged.req)
            with self._stream.beside():
                staged.held = self._tier.take_prompt(staged.sequence, rows)
            staged.mark = self._stream.mark()
        except BaseException:  # whatever it was, nothing is held
            self._tier.close_sequence(staged.sequence)
            staged.sequence = _NONE
            raise

    def num_ready(self) -> int:
        """Requests at the head of the queue whose rows are on the host."""
        for count, staged in enumerate(self.requests):
            if not staged.is_ready:
                return count
        return len(self.requests)

    def take(self, count: int) -> list[StagedRequest]:
        """Takes so many ready ones out, which keep their sequences."""
        taken, self.requests = self.requests[:count], self.requests[count:]
        return taken

    def remove(self, req: Any) -> None:  # noqa: ANN401
        """Takes a request out, and closes the sequence that it may have."""
        self.synchronize()
        for staged in self.requests:
            if staged.req is req and staged.sequence != _NONE:
                self._tier.close_sequence(staged.sequence)
        self.requests = [staged for staged in self.requests if staged.req is not req]

    def synchronize(self) -> None:
        """Waits for every copy."""
        self._stream.synchronize()

    def _say_that_it_waits(self, error: Exception) -> None:
        if not self._is_waiting:
            self._is_waiting = True
            _LOG.info("hisparse: %d requests wait: %s", len(self.requests), error)
