"""Small CPU tensors to the device, many in one transfer that the host does not wait for."""

from collections.abc import Mapping

import torch

_ALIGN_BYTES = 16  # kernels are specialised by what their pointers are multiples of


def upload(tensors: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The same tensors on `device`.

    To CUDA they go together through pinned memory, which torch's allocator keeps until the copy is
    done; on the CPU they are returned as they are.

    Args:
        tensors: on the CPU, contiguous, of any dtypes.
        device: where to.
    """
    if device.type == "cpu":
        return dict(tensors)
    starts, total = {}, 0
    for name, tensor in tensors.items():
        starts[name] = total
        total += -(-tensor.nbytes // _ALIGN_BYTES) * _ALIGN_BYTES
    staged = torch.empty(total, dtype=torch.uint8, pin_memory=True)
    for name, start in starts.items():
        tensor = tensors[name]
        staged[start : start + tensor.nbytes] = tensor.flatten().view(torch.uint8)
    moved = staged.to(device, non_blocking=True)
    return {
        name: _view(moved[start : start + tensors[name].nbytes], tensors[name])
        for name, start in starts.items()
    }


def _view(moved: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    return moved.view(tensor.dtype).view(tensor.shape)
