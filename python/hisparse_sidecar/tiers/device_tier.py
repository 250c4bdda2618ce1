"""The device tier: flat arenas of rows, index-key blocks, pooled keys, and the tables over them."""

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import SlotState
from hisparse_kernels.select_blocks import COUNTED_ROWS
from hisparse_sidecar._core import DeviceCapacity, SequenceRanges
from hisparse_sidecar.config import SidecarConfig

_INT16_SLOTS = 32767


def device_capacity(config: SidecarConfig) -> DeviceCapacity:
    """Sizes of the arenas: room for `max_sequences` at their default slots."""
    # twice what the host holds: forks share pages but not entries, and a range is contiguous
    tokens = 2 * config.host_pages * PAGE_TOKENS
    sequences = config.max_sequences
    blocks = tokens // config.block_tokens + sequences
    return DeviceCapacity(
        slots=sequences * config.default_hot_slots,
        window_slots=sequences * (config.window_blocks + config.touched_blocks),
        table_tokens=tokens,
        table_blocks=blocks,
        pooled_keys=(blocks // PAGE_TOKENS + sequences) * PAGE_TOKENS,
        sequences=sequences,
    )


class DeviceTier:
    """Tensors on the device. A sequence owns the ranges that `SequenceRanges` names.

    Attributes:
        hot_rows: for each layer [slots, kv_row_bytes] uint8, the hot buffers.
        hot: for each anchor group the slot state of its hot buffers (items are token positions).
        window_pages: for each group [window_slots * pages_per_block, index_page_bytes] uint8.
        window: for each group the slot state of its block windows (items are block ids).
        pooled_pages: for each group [pooled_keys / 64, index_page_bytes] uint8.
        open_sums: for each group [sequences, 128] fp32, running sum of the open block.
        stage: [stage_rows, kv_row_bytes] uint8, where prefill streams rows through.
        arrivals: [COUNTED_ROWS] int32 of 0, as `select_blocks` leaves them.
    """

    def __init__(
        self, config: SidecarConfig, capacity: DeviceCapacity, device: torch.device
    ) -> None:
        groups = range(len(config.model.anchors))
        page_bytes, row_bytes = config.index.page_bytes, config.kv.row_bytes
        window_pages = capacity.window_slots * config.pages_per_block
        pooled_pages = capacity.pooled_keys // PAGE_TOKENS

        def rows(count: int, width: int) -> torch.Tensor:
            return torch.zeros(count, width, dtype=torch.uint8, device=device)

        self.device = device
        self.hot_rows = [rows(capacity.slots, row_bytes) for _ in range(config.model.num_layers)]
        self.hot = [_state(capacity.slots, capacity.table_tokens, device) for _ in groups]
        self.window_pages = [rows(window_pages, page_bytes) for _ in groups]
        self.window = [_state(capacity.window_slots, capacity.table_blocks, device) for _ in groups]
        self.pooled_pages = [rows(pooled_pages, page_bytes) for _ in groups]
        self.open_sums = [torch.zeros(capacity.sequences, 128, device=device) for _ in groups]
        self.stage = rows(config.stage_rows, row_bytes)
        self.arrivals = torch.zeros(COUNTED_ROWS, dtype=torch.int32, device=device)

    def reset(self, ranges: SequenceRanges) -> None:
        """Makes a newly owned range cold: no slot holds anything, every sum is zero."""
        token_end = ranges.token_table_base + ranges.token_table_count
        block_end = ranges.block_table_base + ranges.block_table_count
        for hot, window, sums in zip(self.hot, self.window, self.open_sums, strict=True):
            _clear(hot, ranges.slot_base, ranges.slot_count)
            _clear(window, ranges.window_base, ranges.window_count)
            hot.slot_table[ranges.token_table_base : token_end] = -1
            window.slot_table[ranges.block_table_base : block_end] = -1
            sums[ranges.state_row] = 0.0

    def copy_pooled(self, source: SequenceRanges, target: SequenceRanges) -> None:
        """Copies the pooled keys that both ranges have room for: what a fork starts with."""
        pages = min(source.pooled_count, target.pooled_count) // PAGE_TOKENS
        first, to = source.pooled_base // PAGE_TOKENS, target.pooled_base // PAGE_TOKENS
        for pooled in self.pooled_pages:
            pooled[to : to + pages] = pooled[first : first + pages].clone()


def table_dtype(num_slots: int) -> torch.dtype:
    """Of the slot tables of an arena of so many slots."""
    return torch.int16 if num_slots <= _INT16_SLOTS else torch.int32


def _state(num_slots: int, entries: int, device: torch.device) -> SlotState:
    def empty(count: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((count,), -1, dtype=dtype, device=device)

    return SlotState(
        slot_item=empty(num_slots, torch.int32),
        slot_stamp=empty(num_slots, torch.int32),
        slot_table=empty(entries, table_dtype(num_slots)),
    )


def _clear(state: SlotState, base: int, count: int) -> None:
    state.slot_item[base : base + count] = -1
    state.slot_stamp[base : base + count] = -1
