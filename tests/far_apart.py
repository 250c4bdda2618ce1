"""Streams of a GPU of which one is far behind the other: what does not wait is seen."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from hisparse_sidecar.side_stream import SideStream

_CYCLES = 20_000_000  # about 10 ms


def keep_far_apart(monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
    """From now on what runs "beside" is slow, or else what the current stream does before it."""
    beside = SideStream.beside

    @contextmanager
    def far_apart(side: SideStream) -> Iterator[None]:
        if slow != "beside":
            torch.cuda._sleep(_CYCLES)
        with beside(side):
            if slow == "beside":
                torch.cuda._sleep(_CYCLES)
            yield

    monkeypatch.setattr(SideStream, "beside", far_apart)
