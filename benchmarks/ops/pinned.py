"""Pinned host memory, and the view of it that kernels read and write in place."""

import torch

_POOL_BYTES = 1 << 30


class PinnedPool:
    """1 GiB of pinned host memory with random bytes, made once: pinning takes a while.

    Attributes:
        host: [1 GiB] uint8, pinned, on the CPU.
        device: the same bytes as a CUDA tensor: unified addressing makes the address valid there.
    """

    def __init__(self, num_bytes: int = _POOL_BYTES) -> None:
        self.host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        self.device = _device_view(self.host)
        random = torch.randint(256, (num_bytes,), dtype=torch.uint8, device="cuda")
        self.host.copy_(random)

    def rows(self, row_bytes: int, multiple: int = 64) -> torch.Tensor:
        """[n, row_bytes] uint8 on the device: as many whole pages of rows as fit."""
        count = self.host.numel() // row_bytes // multiple * multiple
        return self.device[: count * row_bytes].view(count, row_bytes)


class _Exported:
    """What torch.as_tensor takes; keeps the pinned tensor alive."""

    def __init__(self, pinned: torch.Tensor) -> None:
        self._pinned = pinned
        self.__cuda_array_interface__ = {
            "shape": tuple(pinned.shape),
            "typestr": "|u1",
            "data": (pinned.data_ptr(), False),
            "version": 2,
        }


def _device_view(pinned: torch.Tensor) -> torch.Tensor:
    view = torch.as_tensor(_Exported(pinned), device="cuda")
    if view.data_ptr() != pinned.data_ptr():
        raise RuntimeError(f"torch {torch.__version__} copied pinned memory instead of viewing it")
    return view
