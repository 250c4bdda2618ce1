"""TensorRef: which bytes of a region a tensor takes, and the tensor over them."""

import math

import torch

from hisparse_sidecar._proto.hisparse.v1 import tensor_pb2
from hisparse_sidecar.errors import InvalidArgument

ALIGNMENT_BYTES = 64
MAX_DIMENSIONS = 4

_DTYPES: dict[tensor_pb2.Dtype, torch.dtype] = {
    tensor_pb2.DTYPE_FLOAT32: torch.float32,
    tensor_pb2.DTYPE_BFLOAT16: torch.bfloat16,
    tensor_pb2.DTYPE_FLOAT16: torch.float16,
    tensor_pb2.DTYPE_FLOAT8_E4M3FN: torch.float8_e4m3fn,
    tensor_pb2.DTYPE_INT32: torch.int32,
}
_WIRE_DTYPES = {dtype: number for number, dtype in _DTYPES.items()}


def align(num_bytes: int) -> int:
    """`num_bytes` rounded up to where a tensor may start."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def tensor_ref(
    region_id: int, offset_bytes: int, shape: tuple[int, ...], dtype: torch.dtype
) -> tensor_pb2.TensorRef:
    """The reference to a tensor.

    Raises:
        InvalidArgument: the dtype has no number on the wire.
    """
    if dtype not in _WIRE_DTYPES:
        known = ", ".join(str(known) for known in _WIRE_DTYPES)
        raise InvalidArgument(f"dtype is {dtype}, the wire has {known}")
    return tensor_pb2.TensorRef(
        region_id=region_id, offset_bytes=offset_bytes, shape=shape, dtype=_WIRE_DTYPES[dtype]
    )


def byte_range(name: str, ref: tensor_pb2.TensorRef, region_bytes: int) -> tuple[int, int]:
    """First byte and the byte after the last of the tensor `name`, inside a region.

    Raises:
        InvalidArgument: dtype, shape, alignment or range is not legal.
    """
    dtype, shape, start = _dtype(name, ref), tuple(ref.shape), ref.offset_bytes
    if not 1 <= len(shape) <= MAX_DIMENSIONS or min(shape) < 0:
        needed = f"1 to {MAX_DIMENSIONS} dimensions, each >= 0"
        raise InvalidArgument(f"{name} has shape {shape}, needs {needed}")
    if start % ALIGNMENT_BYTES:
        needed = f"a multiple of {ALIGNMENT_BYTES}"
        raise InvalidArgument(f"{name} starts at byte {start}, needs {needed}")
    end = start + math.prod(shape) * dtype.itemsize  # Python integers: nothing overflows
    if end > region_bytes:
        held = f"region {ref.region_id} has {region_bytes}"
        raise InvalidArgument(f"{name} takes bytes {start} to {end}, {held}")
    return start, end


def tensor_view(name: str, ref: tensor_pb2.TensorRef, region_bytes: torch.Tensor) -> torch.Tensor:
    """The tensor `name` over `region_bytes` [num_bytes] uint8; see `byte_range` for the errors."""
    start, end = byte_range(name, ref, region_bytes.numel())
    return region_bytes[start:end].view(_dtype(name, ref)).view(*ref.shape)


def _dtype(name: str, ref: tensor_pb2.TensorRef) -> torch.dtype:
    if ref.dtype not in _DTYPES:
        known = ", ".join(f"{number} ({dtype})" for number, dtype in _DTYPES.items())
        raise InvalidArgument(f"{name} has dtype number {int(ref.dtype)}, needs one of {known}")
    return _DTYPES[ref.dtype]
