"""Rows of host pages that outlive their sequence, on their way back to the engine's pages."""

from collections.abc import Sequence
from itertools import chain

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import MissPlan
from hisparse_sidecar._core import Manager, PageLease
from hisparse_sidecar.backends import runs_on_its_device
from hisparse_sidecar.ranks.pool_share import PoolShare
from hisparse_sidecar.requirements import require
from hisparse_sidecar.uploads import upload

_ROWS_AT_A_TIME = 32768


class CachedRows:
    """Keeps whole pages of sequences beside them, and copies their rows to where an engine reads.

    What it keeps is held by leases alone: whoever has one decides how long.

    Attributes:
        device: where the engine's memory is.
    """

    def __init__(
        self,
        manager: Manager,
        ranks: PoolShare,
        ops: Ops,
        memory: Sequence[torch.Tensor],
        host_rows: Sequence[torch.Tensor],
    ) -> None:
        """Over the tier's own parts.

        Args:
            manager: of the host pages.
            ranks: who reads and writes them.
            ops: of the device.
            memory: for each layer the engine's memory [all rows, row_bytes] uint8.
            host_rows: for each layer the host pool's rows.
        """
        self._manager, self._ranks, self._ops = manager, ranks, ops
        self._memory, self._host_rows = memory, host_rows
        self.device = memory[0].device

    @property
    def num_free_pages(self) -> int:
        """Host pages that are neither in use nor promised."""
        return self._manager.stats().host_pages_free

    def keep(self, sequence: int, first_page: int, num_pages: int) -> PageLease:
        """Holds whole pages of a sequence, which may be closed then.

        Raises:
            InvalidArgument: these are not whole pages of the sequence.
            UnknownSequence, StaleHandle: no such sequence.
        """
        return self._manager.share_pages(sequence, first_page, num_pages)

    @runs_on_its_device
    def load(self, leases: Sequence[PageLease], rows: torch.Tensor) -> None:
        """Copies the rows of kept pages to the engine's memory, in every layer.

        It is launched on the current stream, and waited for by nobody here.

        Args:
            leases: whose pages, in order.
            rows: [64 a page] int64, where each row goes, on the device.

        Raises:
            InvalidArgument: there are not 64 rows for each page.
            DeadlinePassed, TierDown, WrongState: of ranks; see `PoolShare.compare`.
        """
        numbers = [*chain.from_iterable(one.pages for one in leases)]
        self._ranks.compare("load", lambda: numbers)
        pages = torch.tensor(numbers, dtype=torch.int32)
        found, needed = rows.numel(), pages.numel() * PAGE_TOKENS
        require(found == needed, f"{found} rows for {pages.numel()} pages, needs {needed}")
        counts = [len(part) for part in rows.split(_ROWS_AT_A_TIME)]
        moved = {"pages": pages, "counts": torch.tensor(counts, dtype=torch.int32)}
        there = upload(moved, self.device)
        targets, table = rows.to(torch.int32), there["pages"][None]
        positions = torch.arange(found, dtype=torch.int32, device=self.device)
        halves = positions.split(_ROWS_AT_A_TIME), targets.split(_ROWS_AT_A_TIME)
        parts = list(zip(*halves, strict=True))
        for layer, source in enumerate(self._host_rows):
            for number, (items, put) in enumerate(parts):
                count = there["counts"][number : number + 1]
                plan = MissPlan(items[None], put[None], count, count)
                self._ops.swap_in(source, table, plan, self._memory[layer])
