"""The invariants of hot buffers in an engine's memory, checked against the host pool."""

from collections.abc import Sequence

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import SlotState
from hisparse_sidecar._core import Manager
from hisparse_sidecar.engine_rows.layout import EngineRowsConfig
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.tiers.host_memory import HostArrays
from hisparse_sidecar.tiers.integrity import check_slots


def check_rows(
    config: EngineRowsConfig,
    manager: Manager,
    sequence: int,
    hot: Sequence[SlotState],
    memory: Sequence[torch.Tensor],
    host: HostArrays,
) -> None:
    """Raises HisparseError unless tables, slots and resident bytes of `sequence` agree.

    A token of a step whose layers have not all run is on the host in some of them only: call this
    between steps.
    """
    ranges, pages = manager.ranges(sequence), torch.tensor(manager.host_pages(sequence))
    base = config.hot_row + ranges.slot_base
    entries = slice(ranges.token_table_base, ranges.token_table_base + ranges.token_table_count)
    for layer, group in enumerate(config.groups):
        table = hot[group].slot_table[entries].cpu()
        what = f"sequence {sequence}, group {group}"
        check_slots(f"{what}: slot", hot[group], base, ranges.slot_count, table)
        positions = (table >= 0).nonzero()[:, 0]
        host_ids = pages[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS
        slots = base + table[positions].long()
        found = memory[layer][slots.to(memory[layer].device)].cpu()
        wrong = (~(found == host.kv_rows[layer][host_ids]).all(1)).nonzero()
        if wrong.numel():
            row = int(positions[wrong[0]])
            raise HisparseError(f"{what}: row {row} of layer {layer} differs from the host's")
