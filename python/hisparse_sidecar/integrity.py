"""The invariants of the device tier, checked against the host pool that backs it."""

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import SlotState
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.index_keys import Tiers


def check_sequence(tiers: Tiers, sequence: int) -> None:
    """Raises HisparseError unless tables, slots and resident bytes of `sequence` agree."""
    ranges, length = tiers.manager.ranges(sequence), tiers.manager.length(sequence)
    pages = torch.tensor(tiers.manager.host_pages(sequence), dtype=torch.int64)
    for group in range(len(tiers.config.model.anchors)):
        what = f"sequence {sequence}, group {group}"
        hot, window = tiers.device.hot[group], tiers.device.window[group]
        token_end = ranges.token_table_base + ranges.token_table_count
        block_end = ranges.block_table_base + ranges.block_table_count
        hot_table = hot.slot_table[ranges.token_table_base : token_end]
        window_table = window.slot_table[ranges.block_table_base : block_end]
        _check_slots(f"{what}: slot", hot, ranges.slot_base, ranges.slot_count, hot_table)
        _check_slots(
            f"{what}: window slot", window, ranges.window_base, ranges.window_count, window_table
        )
        _check_rows(tiers, what, group, hot_table, ranges.slot_base, pages)
        _check_blocks(tiers, what, group, window_table, ranges.window_base, pages, length)


def _check_slots(what: str, state: SlotState, base: int, count: int, table: torch.Tensor) -> None:
    """`slot_item` and the table are inverse to each other, and only free slots have no stamp."""
    items, stamps = state.slot_item[base : base + count], state.slot_stamp[base : base + count]
    slots = (items >= 0).nonzero()[:, 0]
    back = table[items[slots].long()].long()
    wrong = (back != slots).nonzero()
    if wrong.numel():
        slot, found = int(slots[wrong[0]]), int(back[wrong[0]])
        raise HisparseError(f"{what} {slot} holds {int(items[slot])}, whose entry names {found}")
    filled, held = int((table >= 0).sum()), slots.numel()
    if filled != held:
        raise HisparseError(f"{what}s hold {held} items, the table names {filled}")
    stamped = int((stamps >= 0).sum())
    if stamped != held:
        raise HisparseError(f"{what}s hold {held} items, {stamped} carry a stamp")


def _check_rows(
    tiers: Tiers, what: str, group: int, table: torch.Tensor, base: int, pages: torch.Tensor
) -> None:
    """Invariant 1: the host pool holds the same bytes as every resident row."""
    positions = (table >= 0).nonzero()[:, 0]
    host_ids = pages[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS
    slots = base + table[positions].long()
    for layer in range(tiers.config.model.num_layers):
        if tiers.config.model.group(layer) != group:
            continue
        same = tiers.device.hot_rows[layer][slots] == tiers.host.kv_rows[layer][host_ids]
        wrong = (~same.all(1)).nonzero()
        if wrong.numel():
            position = int(positions[wrong[0]])
            raise HisparseError(f"{what}: row {position} of layer {layer} differs from the host's")


def _check_blocks(
    tiers: Tiers,
    what: str,
    group: int,
    table: torch.Tensor,
    base: int,
    pages: torch.Tensor,
    length: int,
) -> None:
    """Every index row of a resident block equals the host's, up to the sequence's length."""
    block_tokens, layout = tiers.config.block_tokens, tiers.config.index
    blocks = (table >= 0).nonzero()[:, 0]
    offsets = torch.arange(block_tokens)
    positions = (blocks[:, None] * block_tokens + offsets).flatten()
    device_ids = ((base + table[blocks].long())[:, None] * block_tokens + offsets).flatten()
    held = positions < length
    positions, device_ids = positions[held], device_ids[held]
    host_ids = pages[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS
    read = tiers.ops.read_index_rows
    resident = read(tiers.device.window_pages[group], device_ids, layout)
    same = resident == read(tiers.host.index_pages[group], host_ids, layout)
    wrong = (~same.all(1)).nonzero()
    if wrong.numel():
        position = int(positions[wrong[0]])
        raise HisparseError(f"{what}: index row {position} differs from the host's")
