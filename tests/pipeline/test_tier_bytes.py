"""Bytes that a sequence of a million tokens takes on the device, at sizes of real models."""

import pytest

from hisparse_sidecar import Sidecar
from hisparse_sidecar.config import ModelShape, SidecarConfig

TOKENS = 1 << 20


def long_config(**settings: int) -> SidecarConfig:
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
