"""Putting a sequence back to an earlier length, in the core and on the device."""

import torch

from hisparse_kernels.resolve import SlotState
from hisparse_sidecar._core import SequenceRanges
from hisparse_sidecar.step.build import slot_ranges
from hisparse_sidecar.step.step import Step, stream_stamp
from hisparse_sidecar.tiers.tiers import Tiers
from hisparse_sidecar.uploads import upload


def roll_back(tiers: Tiers, sequence: int, length: int) -> None:
    """Forgets every token from position `length` on; the core refuses before anything changes."""
    tiers.manager.truncate(sequence, length)
    ranges = tiers.manager.ranges(sequence)
    columns = {name: torch.tensor([number]) for name, number in ranges.as_dict().items()}
    hot, window = slot_ranges(upload(columns, tiers.device.device))
    first_block = -(-length // tiers.config.block_tokens)
    for group in range(len(tiers.config.model.anchors)):
        tiers.ops.release_items(tiers.device.hot[group], hot, 0, length)
        tiers.ops.release_items(tiers.device.window[group], window, 0, first_block)
    resum_open_blocks(tiers, ranges, tiers.manager.host_pages(sequence), length)


def forget_touched(tiers: Tiers, step: Step) -> None:
    """Frees every slot that an aborted step touched: its copies may be in some layers only."""
    since = stream_stamp(step.number)
    for member in step.sequences:
        ranges = member.ranges
        for group in range(len(tiers.config.model.anchors)):
            hot, window = tiers.device.hot[group], tiers.device.window[group]
            slots = slice(ranges.slot_base, ranges.slot_base + ranges.slot_count)
            _free_since(hot, slots, ranges.token_table_base, since)
            slots = slice(ranges.window_base, ranges.window_base + ranges.window_count)
            _free_since(window, slots, ranges.block_table_base, since)


def _free_since(state: SlotState, slots: slice, table_base: int, stamp: int) -> None:
    items, stamps = state.slot_item[slots], state.slot_stamp[slots]
    touched = stamps >= stamp
    state.slot_table[table_base + items[touched].long()] = -1
    items.masked_fill_(touched, -1)
    stamps.masked_fill_(touched, -1)


def resum_open_blocks(
    tiers: Tiers, ranges: SequenceRanges, host_pages: list[int], length: int
) -> None:
    """Rebuilds the open block's sum of every anchor group from the rows in the host pool."""
    tensors = {
        "page_table": torch.tensor([host_pages], dtype=torch.int32),
        "lengths": torch.tensor([length], dtype=torch.int32),
        "state_rows": torch.tensor([ranges.state_row]),
    }
    found = upload(tensors, tiers.device.device)
    for group, index_pages in enumerate(tiers.host.index_pages):
        tiers.ops.resum_open_blocks(
            index_pages,
            found["page_table"],
            found["lengths"],
            tiers.device.open_sums[group],
            found["state_rows"],
            tiers.config.block_tokens,
            tiers.config.index,
        )
