"""Checks of single tensors at the doors of a step, of a layer, of a run."""

import torch

from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.requirements import require


def check_tensor(
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    *dtypes: torch.dtype,
    device: torch.device | None = None,
) -> None:
    """Raises InvalidArgument unless the tensor has the shape, -1 = any, and one of the dtypes."""
    found = tuple(tensor.shape)
    fits = len(found) == len(shape) and all(
        needed in (-1, size) for size, needed in zip(found, shape, strict=True)
    )
    if not fits:
        needed = tuple("any" if size < 0 else size for size in shape)
        raise InvalidArgument(f"{name} has shape {found}, needs {needed}".replace("'", ""))
    if tensor.dtype not in dtypes:
        names = ", ".join(map(str, dtypes))
        raise InvalidArgument(f"{name} is {tensor.dtype}, needs {names}")
    if device is not None and tensor.device != device:
        raise InvalidArgument(f"{name} is on {tensor.device}, needs {device}")


def check_place(
    name: str,
    place: torch.Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Raises InvalidArgument unless a result of that shape and dtype can be written there."""
    check_tensor(name, place, shape, dtype, device=device)
    message = f"{name} has strides {place.stride()}, needs contiguous ones"
    require(place.is_contiguous(), message)
