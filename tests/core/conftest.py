"""A small manager over a real region, and its rows as bytes."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from hisparse_sidecar._core import DeviceCapacity, HostLayout, HostRegion, Manager

KV_ROW_BYTES = 16
INDEX_ROW_BYTES = 8


@dataclass
class Host:
    num_pages: int = 16
    block_tokens: int = 128
    capacity: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layout = HostLayout(2, 1, KV_ROW_BYTES, INDEX_ROW_BYTES, self.num_pages)
        self.region = HostRegion(self.layout.num_bytes)
        numbers = {
            "slots": 100,
            "window_slots": 20,
            "table_tokens": 4096,
            "table_blocks": 64,
            "pooled_keys": 512,
            "sequences": 8,
        }
        self.device_capacity = DeviceCapacity(**(numbers | self.capacity))
        self.manager = Manager(
            self.region, self.layout, self.device_capacity, block_tokens=self.block_tokens
        )

    def open(self, prompt: int, max_new: int = 0, *, append: int = 0) -> int:
        seq = self.manager.open_sequence(prompt, max_new, slots=8, window_slots=2)
        if append:
            self.manager.append(seq, append)
        return seq

    def fork(self, seq: int, length: int, max_new: int = 0) -> int:
        return self.manager.fork(seq, length, max_new, slots=8, window_slots=2)

    def page_bytes(self, page: int) -> bytes:
        """Every byte of a page: KV rows of all layers, index rows, pooled key."""
        with memoryview(self.region) as view:
            return b"".join(bytes(view[start:end]) for start, end in self.page_spans(page))

    def fill_page(self, page: int, byte: int) -> None:
        with memoryview(self.region) as view:
            for start, end in self.page_spans(page):
                view[start:end] = bytes([byte]) * (end - start)

    def page_spans(self, page: int) -> list[tuple[int, int]]:
        arrays = [(self.layout.kv_offset(layer), 64 * KV_ROW_BYTES) for layer in range(2)]
        arrays.append((self.layout.index_offset(0), 64 * INDEX_ROW_BYTES))
        arrays.append((self.layout.pooled_offset(0), INDEX_ROW_BYTES))
        return [(start + page * size, start + (page + 1) * size) for start, size in arrays]


@pytest.fixture
def make_host() -> Callable[..., Host]:
    return Host


@pytest.fixture
def host() -> Host:
    return Host()
