"""Bytes that a sequence of a million tokens takes on the device, at sizes of real models."""

from typing import Any

import pytest
import torch

from hisparse_kernels.resolve import SlotState
from hisparse_sidecar import Sidecar
from hisparse_sidecar.config import ModelShape, SidecarConfig
from hisparse_sidecar.stats import tier_bytes
from hisparse_sidecar.tiers.device_tier import DeviceTier, device_capacity
from tests.pipeline.world import small_config

TOKENS = 1 << 20


def long_config(**settings: Any) -> SidecarConfig:
    """One anchor layer of a model with 64 index heads and topk 2048."""
    model = ModelShape(1, (0,), index_heads=64, topk=2048, softmax_scale=1.0)
    pages = TOKENS // 64
    return SidecarConfig(model, host_pages=pages, max_sequences=1, **settings)


@pytest.mark.parametrize(("settings", "most"), [({}, 3.0), ({"window_blocks": 176}, 4.0)])
def test_the_index_side_takes_few_bytes_a_token(settings: dict[str, int], most: float) -> None:
    """With 64 and with 128 kept blocks; where every index row stays it is 132 B."""
    with Sidecar(long_config(**settings)) as sidecar:
        held = sidecar.tier_bytes(sidecar.open(TOKENS - 64, 64))
    assert most - 0.25 < held.index_side / TOKENS <= most
    assert held.device == held.index_side + held.hot_buffer + held.hot_tables


INT16, INT32 = torch.int16, torch.int32


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("settings", "hot_dtype", "window_dtype"),
    [
        ({}, INT16, INT16),
        ({"hot_slots": 32767}, INT16, INT16),
        ({"hot_slots": 32768}, INT32, INT16),
        ({"window_blocks": 32766}, INT16, INT16),
        ({"window_blocks": 32767}, INT16, INT32),
    ],
)
def test_tables_count_as_wide_as_they_are(
    settings: dict[str, int], hot_dtype: torch.dtype, window_dtype: torch.dtype
) -> None:
    with Sidecar(small_config()) as sidecar:
        ranges = sidecar._manager.ranges(sidecar.open(100, 20))
    config = small_config(max_sequences=1, **settings)
    # on "meta" nothing takes memory, and every tensor has its size
    tier = DeviceTier(config, device_capacity(config), torch.device("meta"))

    held = tier_bytes(config, ranges, 0)

    def table_bytes(states: list[SlotState], slots: int, entries: int) -> int:
        each = [(s.slot_item[:slots], s.slot_stamp[:slots], s.slot_table[:entries]) for s in states]
        return sum(tensor.nbytes for tensors in each for tensor in tensors)

    assert {state.slot_table.dtype for state in tier.hot} == {hot_dtype}
    assert {state.slot_table.dtype for state in tier.window} == {window_dtype}
    hot = tier.hot, ranges.slot_count, ranges.token_table_count
    assert held.hot_tables == table_bytes(*hot)
    window = tier.window, ranges.window_count, ranges.block_table_count
    assert held.window_tables == table_bytes(*window)
