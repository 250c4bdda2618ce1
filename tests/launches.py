"""What is launched on the device: ops, and nothing of torch's between them.

The ops are the reference's, whose own torch calls do not count; what torch is asked for besides
would be a kernel of its own on a GPU, unless it is a view or memory that nobody fills.
"""

from dataclasses import fields
from functools import partial
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from hisparse_kernels.backends import Ops, reference_ops

_MEMORY = ("aten::empty", "aten::new_empty", "aten::empty_like")


class Launches(TorchDispatchMode):
    """Ops of the sidecar and calls of torch that work on the device, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        returned = func._schema.returns[0].alias_info if func._schema.returns else None
        is_view = returned is not None and not returned.is_write
        if not is_view and func._schema.name not in _MEMORY:
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))

    def ops(self) -> Ops:
        """The reference's ops, noted by their names."""
        ops = reference_ops()
        return Ops(**{one.name: partial(self._call, one.name, ops) for one in fields(Ops)})

    def _call(self, name: str, ops: Ops, *args: Any, **kwargs: Any) -> object:
        self.names.append(name)
        with _disable_current_modes():
            return getattr(ops, name)(*args, **kwargs)
