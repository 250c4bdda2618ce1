"""Host memory that a CUDA device reads and writes in place: registered, and seen as its tensor.

On 64-bit Linux a registered host address is valid on the device as it is (unified addressing), so
one tensor of the device stands for memory that lies on the host. torch takes such a tensor from
`__cuda_array_interface__`: it asks CUDA which device the address belongs to, and CUDA names the one
that was current when the memory was registered.

Kernels may cross the border of two registered chunks, copies by the driver may not: write to these
tensors by indexing or arithmetic, never with `copy_` or `clone` of more than one chunk.
"""

import weakref
from contextlib import suppress
from typing import Any

import torch

from hisparse_sidecar._core import HostRegion
from hisparse_sidecar.errors import RegionError, WrongState

CHUNK_BYTES = 1 << 30  # larger registrations fail or stall for long on some drivers
_PORTABLE, _MAPPED = 1, 2  # flags of cudaHostRegister: for every context, into its address space


class PinnedMemory:
    """All bytes of a region, registered with CUDA until `close`.

    Attributes:
        chunks: (address, bytes) of each registration.
    """

    def __init__(
        self, region: HostRegion, device: torch.device, *, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        """Registers the region; where that fails, nothing stays registered.

        Args:
            region: outlives the registration.
            device: a CUDA device.
            chunk_bytes: most bytes of one registration, a multiple of the page size.

        Raises:
            RegionError: CUDA refuses a chunk, or torch refuses the registered memory.
        """
        self.chunks: list[tuple[int, int]] = []
        self._device = device
        try:
            with torch.cuda.device(device):
                torch.cuda.current_stream()  # makes the context that registrations belong to
                for start in range(0, region.num_bytes, chunk_bytes):
                    num_bytes = min(chunk_bytes, region.num_bytes - start)
                    self._register(region.address + start, num_bytes)
            self._tensor, exported = _tensor_of(region, device)
        except BaseException:
            _unregister(self.chunks, device)
            raise
        self._exported = weakref.ref(exported)
        # Also without a close: the last view's end undoes what else would outlive the mapping, and
        # would make CUDA refuse the next region at the same address.
        weakref.finalize(exported, _unregister, self.chunks, device).atexit = False

    @property
    def tensor(self) -> torch.Tensor:
        """[num_bytes] uint8 on the device: the region's own bytes. It keeps the region mapped."""
        if self._tensor is None:
            raise WrongState("the pinned memory is closed, 0 bytes of it are registered")
        return self._tensor

    def close(self) -> None:
        """Waits for the device and undoes the registrations; a second call does nothing.

        Raises:
            WrongState: a tensor over the memory is still held; let go of it and close again.
        """
        self.synchronize()
        self._tensor = None
        if self._exported() is not None:
            held = f"{len(self.chunks)} chunks are registered"
            raise WrongState(f"a device tensor of the host memory is still held, {held}")

    def synchronize(self) -> None:
        """Waits for everything that the device was asked to do."""
        torch.cuda.synchronize(self._device)

    def _register(self, address: int, num_bytes: int) -> None:
        cudart: Any = torch.cuda.cudart()
        status = cudart.cudaHostRegister(address, num_bytes, _PORTABLE | _MAPPED)
        if int(status) != 0:
            _forget_cuda_error(self._device)
            said, done = cudart.cudaGetErrorString(status), sum(size for _, size in self.chunks)
            raise RegionError(
                f"CUDA cannot register {num_bytes} bytes of host memory after {done}: {said}"
            )
        self.chunks.append((address, num_bytes))


class _DeviceBytes:
    """What torch.as_tensor takes: the region's bytes, with its memory view to keep them mapped."""

    def __init__(self, region: HostRegion) -> None:
        self._mapped = memoryview(region)
        self.__cuda_array_interface__ = {
            "shape": (region.num_bytes,),
            "typestr": "|u1",
            "data": (region.address, False),
            "version": 2,
        }


def _unregister(chunks: list[tuple[int, int]], device: torch.device) -> None:
    """Waits for the device, then undoes the registrations and forgets them."""
    cudart: Any = torch.cuda.cudart()
    with torch.cuda.device(device):
        with suppress(RuntimeError):  # of a device that is lost: nothing will write any more
            torch.cuda.synchronize(device)
        while chunks:
            cudart.cudaHostUnregister(chunks.pop()[0])


def _tensor_of(
    region: HostRegion, device: torch.device
) -> tuple[torch.Tensor | None, _DeviceBytes]:
    """The tensor, and what lives as long as the last view of it."""
    exported = _DeviceBytes(region)
    try:
        tensor = torch.as_tensor(exported, device=device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise RegionError(
            f"torch {torch.__version__} takes no registered memory: {error}"
        ) from error
    if tensor.device != device or tensor.data_ptr() != region.address:
        found = f"{tensor.device} at {tensor.data_ptr():#x}"
        raise RegionError(f"the host memory became {found}, need {device} at {region.address:#x}")
    return tensor, exported


def _forget_cuda_error(device: torch.device) -> None:
    # a refused call leaves its error for the next launch to find: let that one be ours
    try:
        torch.zeros(1, device=device)
    except RuntimeError:
        return
