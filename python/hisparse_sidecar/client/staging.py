"""The client's region: the tensors of one layer are laid out in it, one after the other."""

import contextlib
import math
import os

import torch

from hisparse_sidecar._core import HostRegion
from hisparse_sidecar._proto.hisparse.v1 import tensor_pb2
from hisparse_sidecar.client.sidecar_client import SidecarClient
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.wire.tensor_refs import align, tensor_ref, tensor_view


class Staging:
    """Places tensors from the start of the region on; `clear` begins anew.

    The region grows by being replaced, so clear it before the tensors of a layer and make room for
    all of them at once.
    """

    def __init__(self, client: SidecarClient, num_bytes: int) -> None:
        self._client = client
        self._map(num_bytes)

    def clear(self, num_bytes: int) -> None:
        """Forgets every tensor and makes room for `num_bytes`, each tensor's size aligned."""
        self._used_bytes = 0
        if num_bytes > self._bytes.numel():
            self._unmap()
            self._map(1 << (num_bytes - 1).bit_length())

    def place(self, tensor: torch.Tensor) -> tensor_pb2.TensorRef:
        """Copies a tensor in."""
        ref = self.reserve(tuple(tensor.shape), tensor.dtype)
        self.tensor(ref).copy_(tensor)
        return ref

    def reserve(self, shape: tuple[int, ...], dtype: torch.dtype) -> tensor_pb2.TensorRef:
        """A place for the server to write."""
        ref = tensor_ref(self._region_id, self._used_bytes, shape, dtype)
        self._used_bytes += align(tensor_bytes(shape, dtype))
        return ref

    def tensor(self, ref: tensor_pb2.TensorRef) -> torch.Tensor:
        """What lies at a place; drop it before the region is cleared or closed."""
        return tensor_view("tensor", ref, self._bytes)

    def close(self) -> None:
        """Unmaps the region; the server's end of it goes with the client."""
        self._bytes = torch.empty(0, dtype=torch.uint8)
        # somebody still holds a tensor of it, say in an exception: unmapped when that is dropped
        with contextlib.suppress(WrongState):
            self._memory.close()

    def _map(self, num_bytes: int) -> None:
        region = self._client.create_region(num_bytes)
        descriptor = self._client.fetch_region(region.region_token)
        try:
            self._memory = HostRegion.attach(descriptor)
        finally:
            os.close(descriptor)
        self._region_id = region.region_id
        self._bytes = torch.frombuffer(memoryview(self._memory), dtype=torch.uint8)
        self._used_bytes = 0

    def _unmap(self) -> None:
        self._client.close_region(self._region_id)
        self.close()


def tensor_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of a dense tensor."""
    return math.prod(shape) * dtype.itemsize
