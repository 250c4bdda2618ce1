"""The invariants of the device tier, checked against the host pool that backs it.

The checks run on the CPU, with the reference's reading of rows: they trust no kernel.
"""

from dataclasses import dataclass

import torch

from hisparse_kernels.index_rows import read_index_rows_ref
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import SlotState
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.tiers.host_memory import HostArrays
from hisparse_sidecar.tiers.tiers import Tiers


def check_sequence(tiers: Tiers, sequence: int) -> None:
    """Raises HisparseError unless tables, slots and resident bytes of `sequence` agree."""
    ranges, length = tiers.manager.ranges(sequence), tiers.manager.length(sequence)
    pages = torch.tensor(tiers.manager.host_pages(sequence), dtype=torch.int64)
    host = tiers.host.on_cpu()
    for group in range(len(tiers.config.model.anchors)):
        what = f"sequence {sequence}, group {group}"
        hot, window = tiers.device.hot[group], tiers.device.window[group]
        token_end = ranges.token_table_base + ranges.token_table_count
        block_end = ranges.block_table_base + ranges.block_table_count
        hot_table = hot.slot_table[ranges.token_table_base : token_end].cpu()
        window_table = window.slot_table[ranges.block_table_base : block_end].cpu()
        check_slots(f"{what}: slot", hot, ranges.slot_base, ranges.slot_count, hot_table)
        check_slots(
            f"{what}: window slot", window, ranges.window_base, ranges.window_count, window_table
        )
        resident = _Resident(tiers, host, what, group, pages)
        _check_rows(resident, hot_table, ranges.slot_base)
        _check_blocks(resident, window_table, ranges.window_base, length)
        if tiers.loaded.has(sequence, group):
            _check_loaded(what, window_table, -(-length // tiers.config.block_tokens))


@dataclass(frozen=True)
class _Resident:
    """One group of a sequence: its device rows must equal the host's, on its pages."""

    tiers: Tiers
    host: HostArrays
    what: str
    group: int
    pages: torch.Tensor

    def host_ids(self, positions: torch.Tensor) -> torch.Tensor:
        """Row of the host's arrays of each token position."""
        return self.pages[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS


def check_slots(what: str, state: SlotState, base: int, count: int, table: torch.Tensor) -> None:
    """`slot_item` and the table are inverse to each other, and only free slots have no stamp."""
    slots_of = slice(base, base + count)
    items, stamps = state.slot_item[slots_of].cpu(), state.slot_stamp[slots_of].cpu()
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


def _check_rows(resident: _Resident, table: torch.Tensor, base: int) -> None:
    """Invariant 1: the host pool holds the same bytes as every resident row."""
    positions = (table >= 0).nonzero()[:, 0]
    host_ids = resident.host_ids(positions)
    slots = base + table[positions].long()
    model, device = resident.tiers.config.model, resident.tiers.device
    for layer in range(model.num_layers):
        if model.group(layer) != resident.group:
            continue
        rows = device.hot_rows[layer][slots.to(device.device)].cpu()
        wrong = (~(rows == resident.host.kv_rows[layer][host_ids]).all(1)).nonzero()
        if wrong.numel():
            what = f"{resident.what}: row {int(positions[wrong[0]])} of layer {layer}"
            raise HisparseError(f"{what} differs from the host's")


def _check_loaded(what: str, table: torch.Tensor, blocks: int) -> None:
    """A window that is taken for one that holds every block does."""
    held = int((table[:blocks] >= 0).sum())
    if held != blocks:
        raise HisparseError(f"{what}: the window holds {held} blocks, all {blocks} are expected")


def _check_blocks(resident: _Resident, table: torch.Tensor, base: int, length: int) -> None:
    """Every index row of a resident block equals the host's, up to the sequence's length."""
    config, device = resident.tiers.config, resident.tiers.device
    block_tokens, group = config.block_tokens, resident.group
    blocks = (table >= 0).nonzero()[:, 0]
    offsets = torch.arange(block_tokens)
    positions = (blocks[:, None] * block_tokens + offsets).flatten()
    device_ids = ((base + table[blocks].long())[:, None] * block_tokens + offsets).flatten()
    held = positions < length
    positions, device_ids = positions[held], device_ids[held].to(device.device)
    host_ids = resident.host_ids(positions)
    rows = read_index_rows_ref(device.window_pages[group], device_ids, config.index).cpu()
    same = rows == read_index_rows_ref(resident.host.index_pages[group], host_ids, config.index)
    wrong = (~same.all(1)).nonzero()
    if wrong.numel():
        position = int(positions[wrong[0]])
        raise HisparseError(f"{resident.what}: index row {position} differs from the host's")
