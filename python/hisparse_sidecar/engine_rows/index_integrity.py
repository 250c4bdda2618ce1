"""The invariants of the index side, checked on the CPU against the host pool."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hisparse_kernels.index_rows import read_index_rows_ref
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS
from hisparse_kernels.pool_keys import rebuild_pooled_keys_ref
from hisparse_sidecar._core import Manager, SequenceRanges
from hisparse_sidecar.engine_rows.index_part import INDEX_LAYOUT, pages_of
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.tiers.host_memory import HostArrays
from hisparse_sidecar.tiers.integrity import check_slots

if TYPE_CHECKING:
    from hisparse_sidecar.engine_rows.index_tier import EngineIndexTier


def check_index(
    index: "EngineIndexTier", manager: Manager, sequence: int, host: HostArrays
) -> None:
    """Raises HisparseError unless windows, pooled keys and sums of `sequence` are the host's.

    A token of a step whose layers have not all run is on the host in some of them only: call this
    between steps.
    """
    ranges, length = manager.ranges(sequence), manager.length(sequence)
    pages = torch.tensor(manager.host_pages(sequence))[: pages_of(length)]
    for group in range(len(index.pages)):
        one = _Group(index, group, ranges, pages, length, f"sequence {sequence}, group {group}")
        one.check_windows(host.index_pages[group])
        one.check_pooled(host.index_pages[group])


@dataclass(frozen=True)
class _Group:
    index: "EngineIndexTier"
    group: int
    ranges: SequenceRanges
    pages: torch.Tensor
    length: int
    what: str

    def check_windows(self, host_pages: torch.Tensor) -> None:
        """Tables and slots agree, the newest page is the open one, and rows are the host's."""
        ranges, windows = self.ranges, self.index.windows
        state, base = windows.of_group[self.group], windows.first_page(ranges)
        first = ranges.block_table_base
        table = state.slot_table[first : first + ranges.block_table_count].cpu()
        check_slots(f"{self.what}: window slot", state, base, ranges.window_count, table)
        newest, last = pages_of(self.length) - 1, ranges.window_count - 1
        if int(table[newest]) != last and self.length % PAGE_TOKENS:
            found = int(table[newest])
            raise HisparseError(f"{self.what}: page {newest} has slot {found}, needs {last}")
        blocks = (table >= 0).nonzero()[:, 0]
        places = torch.arange(PAGE_TOKENS)
        pos = (blocks[:, None] * PAGE_TOKENS + places).flatten()
        rows = ((base + table[blocks].long())[:, None] * PAGE_TOKENS + places).flatten()
        rows, pos = rows[pos < self.length], pos[pos < self.length]
        device_pages = self.index.pages[self.group]
        found_rows = read_index_rows_ref(device_pages, rows.to(device_pages.device), INDEX_LAYOUT)
        wanted = read_index_rows_ref(host_pages, self._host_rows(pos), INDEX_LAYOUT)
        wrong = (~(found_rows.cpu() == wanted).all(1)).nonzero()
        if wrong.numel():
            row = int(pos[wrong[0]])
            raise HisparseError(f"{self.what}: index row {row} differs from the host's")

    def check_pooled(self, host_pages: torch.Tensor) -> None:
        """Pooled keys of full pages and the open page's sum are those of a rebuild."""
        full = self.length // PAGE_TOKENS
        rebuilt = torch.zeros(pages_of(max(full, 1)), INDEX_LAYOUT.page_bytes, dtype=torch.uint8)
        sums, none = torch.zeros(1, INDEX_DIM), torch.zeros(1, dtype=torch.int64)
        lengths = torch.tensor([self.length], dtype=torch.int32)
        of_one = self.pages[None].int(), lengths, sums, none, rebuilt, none
        rebuild_pooled_keys_ref(host_pages, *of_one, PAGE_TOKENS, INDEX_LAYOUT)
        rows = torch.arange(full)
        pooled = self.index.pooled_pages[self.group]
        ids = (self.ranges.pooled_base + rows).to(pooled.device)
        found = read_index_rows_ref(pooled, ids, INDEX_LAYOUT).cpu()
        wrong = (~(found == read_index_rows_ref(rebuilt, rows, INDEX_LAYOUT)).all(1)).nonzero()
        if wrong.numel():
            raise HisparseError(f"{self.what}: the pooled key of page {int(wrong[0])} is another")
        held = self.index.open_sums[self.group][self.ranges.state_row].cpu()
        if not torch.equal(held, sums[0]):
            raise HisparseError(f"{self.what}: the open page's sum is another than its rows'")

    def _host_rows(self, pos: torch.Tensor) -> torch.Tensor:
        """[n] int64, row of the host's pages of each position."""
        return self.pages[pos // PAGE_TOKENS].long() * PAGE_TOKENS + pos % PAGE_TOKENS
