"""Values and addresses of a Gluon kernel, as torch tensors on the CPU."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch


class Value:
    """A tensor or a number of the kernel; has no layout."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor if isinstance(tensor, torch.Tensor) else torch.tensor(tensor)

    @property
    def shape(self) -> list[int]:
        return list(self.tensor.shape)

    @property
    def type(self) -> SimpleNamespace:
        return SimpleNamespace(layout=None)

    def to(self, dtype: torch.dtype) -> Value:
        return Value(self.tensor.to(dtype))

    def __index__(self) -> int:
        return int(self.tensor)

    def __bool__(self) -> bool:
        return bool(self.tensor)


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[Value, Any], Any]:
    def method(self: Value, other: Any) -> Any:
        if isinstance(other, Pointer):
            return NotImplemented
        return Value(function(self.tensor, plain(other)))

    return method


def _swapped(function: Callable[[Any, Any], Any]) -> Callable[[Value, Any], Any]:
    return _binary(lambda own, other: function(other, own))


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "and_", "or_", "xor"):
    _function = getattr(operator, _name)
    setattr(Value, f"__{_name.strip('_')}__", _binary(_function))
    setattr(Value, f"__r{_name.strip('_')}__", _swapped(_function))
for _name in ("rshift", "lshift", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Value, f"__{_name}__", _binary(getattr(operator, _name)))


def plain(value: Any) -> Any:
    """The torch tensor of a value; anything else as it is."""
    return value.tensor if isinstance(value, Value) else value


@dataclass(frozen=True)
class PointerType:
    element_ty: torch.dtype


@dataclass(frozen=True)
class Pointer:
    """Addresses in the storage of one argument: its bytes, offsets into them, what lies there."""

    storage: torch.Tensor  # [bytes] uint8
    offsets: torch.Tensor  # int64
    element_ty: torch.dtype

    @classmethod
    def to_tensor(cls, tensor: torch.Tensor) -> Pointer:
        """Where an argument begins."""
        storage = torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage())
        first = tensor.storage_offset() * tensor.element_size()
        return cls(storage, torch.tensor(first), tensor.dtype)

    @property
    def dtype(self) -> PointerType:
        return PointerType(self.element_ty)

    def to(self, kind: PointerType) -> Pointer:
        return Pointer(self.storage, self.offsets, kind.element_ty)

    def __add__(self, count: Any) -> Pointer:
        count = torch.as_tensor(plain(count)).long()
        return Pointer(
            self.storage, self.offsets + count * self.element_ty.itemsize, self.element_ty
        )

    def expanded(self, dim: int) -> Pointer:
        return Pointer(self.storage, self.offsets.unsqueeze(dim), self.element_ty)

    def load(self, mask: Any, other: Any) -> Value:
        elements, at, mask = self._elements(mask)
        values = elements[at.where(mask, 0)]
        if other is None:
            assert bool(mask.all())
            return Value(values)
        return Value(torch.where(mask, values, torch.tensor(other).to(values.dtype)))

    def store(self, values: Value | float, mask: Any) -> None:
        elements, at, mask = self._elements(mask)
        found = torch.as_tensor(plain(values)).to(elements.dtype).broadcast_to(at.shape)
        elements[at[mask]] = found[mask]

    def _elements(self, mask: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The storage as elements, the index of each address in it, and which are to be used.

        Fails on an address outside of the argument's storage, or between two elements.
        """
        mask = torch.as_tensor(True if mask is None else plain(mask))
        offsets, mask = torch.broadcast_tensors(self.offsets, mask)
        size = self.element_ty.itemsize
        used = offsets[mask]
        assert not bool((used % size).any()), "an address is not aligned"
        assert not bool(((used < 0) | (used + size > len(self.storage))).any()), "out of bounds"
        whole = len(self.storage) // size * size
        return self.storage[:whole].view(self.element_ty), offsets // size, mask
