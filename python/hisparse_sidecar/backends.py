"""Which device and which ops a configuration means, on this machine."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, Literal, ParamSpec, Protocol, TypeVar

import torch

from hisparse_kernels.backends import Ops, reference_ops
from hisparse_sidecar.config import Backend, SidecarConfig
from hisparse_sidecar.errors import InvalidArgument

BackendName = Literal["reference", "triton", "gluon_sm100", "flash_mla"]
_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


class _HasDevice(Protocol):
    device: torch.device


_Owner = TypeVar("_Owner", bound=_HasDevice)


def best_device() -> str:
    """The device where none is asked for: the first GPU, or without one the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def find_device(name: str) -> torch.device:
    """The device of a name, with its index.

    Raises:
        InvalidArgument: torch has no such device; says what it has.
    """
    device = torch.device(name)
    if device.type == "cpu":
        return device
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= found:
        has = f"torch {torch.__version__} finds {found} CUDA devices"
        raise InvalidArgument(f"device is {name!r}, {has}")
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.device("cuda", index)


def runs_on_its_device(
    method: Callable[Concatenate[_Owner, _Args], _Result],
) -> Callable[Concatenate[_Owner, _Args], _Result]:
    """A method during which its object's device is torch's current one: Triton launches there."""

    @wraps(method)
    def guarded(self: _Owner, /, *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        if self.device.type == "cpu":
            return method(self, *args, **kwargs)
        with torch.cuda.device(self.device):
            return method(self, *args, **kwargs)

    return guarded


def backend_name(config: SidecarConfig) -> BackendName:
    """The backend that a configuration means: "auto" is triton on CUDA, reference on the CPU."""
    if config.backend != "auto":
        return config.backend
    return "reference" if config.device == "cpu" else "triton"


def choose_ops(config: SidecarConfig) -> Ops:
    """The ops of a configuration's backend.

    Raises:
        InvalidArgument: the Triton backend on the CPU, outside Triton's interpreter.
    """
    return ops_of(config.backend, config.device)


def ops_of(backend: Backend, device: str) -> Ops:
    """The ops of a backend, for tensors on a device "cpu", "cuda" or "cuda:N".

    "auto" on CUDA is Triton, and what an installed peer does faster.

    Raises:
        InvalidArgument: the Triton backend on the CPU, outside Triton's interpreter; a body for
            sm_100 on another GPU; or FlashMLA on a GPU that is no sm_90, or not installed.
    """
    if backend == "gluon_sm100":
        return _sm100_ops(device)
    if backend == "flash_mla":
        return _flash_mla_ops(device)
    if backend == "reference" or (backend == "auto" and device == "cpu"):
        return reference_ops()
    if device == "cpu" and not _interpreting():
        needed = "set TRITON_INTERPRET=1 before Python starts, or use device 'cuda'"
        raise InvalidArgument(
            f"backend is 'triton' on device 'cpu', needs the interpreter: {needed}"
        )
    from hisparse_kernels.gpu.backend import fastest_ops, triton_ops

    return fastest_ops() if backend == "auto" else triton_ops()


def _sm100_ops(device: str) -> Ops:
    found = "device 'cpu'"
    if device != "cpu":
        from hisparse_kernels.gpu.backend import gluon_sm100_ops
        from hisparse_kernels.gpu.pipelines import TCGEN05

        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) in TCGEN05:
            return gluon_sm100_ops()
        found = f"compute capability {major}.{minor}"
    raise InvalidArgument(f"backend is 'gluon_sm100' on {found}, needs 10.0 or 10.3")


def _flash_mla_ops(device: str) -> Ops:
    if device == "cpu":
        raise InvalidArgument("backend is 'flash_mla' on device 'cpu', needs a GPU of sm_90")
    from hisparse_kernels.gpu.backend import flash_mla_ops
    from hisparse_kernels.gpu.flash_mla import FlashMlaAbsentError, flash_mla_module

    try:
        flash_mla_module(torch.device(device))
    except FlashMlaAbsentError as error:
        raise InvalidArgument(f"backend is 'flash_mla' on device {device!r}: {error}") from None
    return flash_mla_ops()


def _interpreting() -> bool:
    try:
        from hisparse_kernels.gpu.interpreter import interpreting
    except ImportError:  # a machine without Triton
        return False
    return interpreting()
