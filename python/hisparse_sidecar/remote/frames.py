"""Frames as the store sees them: in a lane's memory, or a header there and a page where it lies."""

import ctypes
from typing import NamedTuple

from hisparse_sidecar.remote.object_store import ObjectStore

# a store takes a second part of an object 70 us later; a copy of so much takes longer
_LEAST_IN_PLACE_BYTES = 256 << 10


class Frame(NamedTuple):
    """A frame under its key: what of it lies in the lane, and all of its parts."""

    key: str
    memory: memoryview
    addresses: list[int]
    sizes: list[int]

    @property
    def num_bytes(self) -> int:
        """Of header and page."""
        return sum(self.sizes)


class SharedMemory:
    """Memory that the store may read: pages in it need not be copied."""

    def __init__(self) -> None:
        self._held: list[memoryview] = []
        self._ranges: list[range] = []

    def register(self, store: ObjectStore, memory: memoryview) -> int:
        """Lets the store read it until it is closed; the store's code."""
        address = _address(memory)
        code = store.register_buffer(address, memory.nbytes)
        if code >= 0:
            self._held.append(memory)
            self._ranges.append(range(address, address + memory.nbytes))
        return code

    def address_of(self, page: memoryview) -> int | None:
        """Where a page lies that is better not copied; None for others."""
        if not self._ranges or page.readonly or page.nbytes < _LEAST_IN_PLACE_BYTES:
            return None
        first = _address(page)
        last = first + page.nbytes - 1
        is_shared = any(first in known and last in known for known in self._ranges)
        return first if is_shared else None


def store_frames(store: ObjectStore, frames: list[Frame]) -> list[int]:
    """Puts frames in one call; the code of each."""
    if all(len(frame.sizes) == 1 for frame in frames):
        if len(frames) == 1:
            (key, _, (address,), (size,)) = frames[0]
            return [store.put_from(key, address, size)]
        return store.batch_put_from(*_flat_columns(frames))
    return store.batch_put_from_multi_buffers(*_columns(frames))


def load_frames(store: ObjectStore, frames: list[Frame]) -> list[int]:
    """Gets frames of one part each in one call; the length or code of each."""
    if len(frames) == 1:
        (key, _, (address,), (size,)) = frames[0]
        return [store.get_into(key, address, size)]
    return store.batch_get_into(*_flat_columns(frames))


def _columns(frames: list[Frame]) -> tuple[list[str], list[list[int]], list[list[int]]]:
    return (
        [frame.key for frame in frames],
        [frame.addresses for frame in frames],
        [frame.sizes for frame in frames],
    )


def _flat_columns(frames: list[Frame]) -> tuple[list[str], list[int], list[int]]:
    keys, addresses, sizes = _columns(frames)
    return keys, [address for (address,) in addresses], [size for (size,) in sizes]


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
