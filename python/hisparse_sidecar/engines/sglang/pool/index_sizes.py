"""With index offload: how many index rows SGLang's pool has, and what a row of it costs."""

import math
from dataclasses import dataclass

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.engine_rows.index_part import INDEX_LAYOUT

_INT16_SLOTS = 32767


@dataclass(frozen=True)
class IndexSizes:
    """Sizes that follow from the settings alone, before there is a pool.

    Attributes:
        hot_share: most of the pool's rows that hot buffers take.
        hot_slots: rows of a hot buffer.
        window_pages: pages of a window, without the open one.
        slots_per_row: SGLang's `host_to_device_ratio`: its slots, and tokens of the host pool, for
            each row of the device pool.
    """

    hot_share: float
    hot_slots: int
    window_pages: int
    slots_per_row: int

    @property
    def index_rows_per_row(self) -> float:
        """Index rows for each row of the pool, at least 1.

        Prompts have as many as rows; hot buffers none, but each of them has a window.
        """
        window_rows = (self.window_pages + 1) * PAGE_TOKENS
        return 1 + self.hot_share * max(0.0, window_rows / self.hot_slots - 1)

    def index_rows(self, pool_rows: int) -> int:
        """Index rows of a layer, whole pages, for a pool of so many rows."""
        return int(pool_rows * self.index_rows_per_row) // PAGE_TOKENS * PAGE_TOKENS

    def cell_bytes(self, num_layers: int, num_groups: int, row_bytes: int) -> int:
        """Device memory for each row of the pool, everything of ours included.

        Args:
            num_layers: layers of the pool.
            num_groups: those that select, and have index keys.
            row_bytes: bytes of a KV row.
        """
        return num_layers * row_bytes + math.ceil(num_groups * self._index_cell_bytes)

    @property
    def _index_cell_bytes(self) -> float:
        slot_entry_bytes = 2 if self.hot_slots <= _INT16_SLOTS else 4
        page_entry_bytes, state_bytes = 2, 8  # an item and a stamp
        pooled = (INDEX_LAYOUT.row_bytes + page_entry_bytes) / PAGE_TOKENS
        of_index_row = INDEX_LAYOUT.row_bytes + (INDEX_LAYOUT.row_bytes + state_bytes) / PAGE_TOKENS
        return (
            self.index_rows_per_row * of_index_row
            + self.slots_per_row * (slot_entry_bytes + pooled)
            + self.hot_share * state_bytes
        )
