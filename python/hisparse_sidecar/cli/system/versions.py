"""Versions of everything that a result depends on, and the backends that run on this machine."""

import platform
from importlib import metadata
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from hisparse_sidecar.config import Backend

_DISTRIBUTIONS = {
    "sidecar": "hisparse-sidecar",
    "kernels": "hisparse-kernels",
    "torch": "torch",
    "triton": "triton",
    "transformers": "transformers",
    "grpcio": "grpcio",
}


def find_versions() -> dict[str, str | None]:
    """Version of each part; None = not installed."""
    from hisparse_sidecar._core import core_version

    versions = {name: _distribution_version(dist) for name, dist in _DISTRIBUTIONS.items()}
    return {**versions, "core": core_version(), "python": platform.python_version()}


def find_backends() -> dict[str, str | None]:
    """Each name that `SidecarConfig.backend` takes besides "auto", and why it cannot run here.

    On the first GPU, or without one on the CPU; None = it can.
    """
    from hisparse_sidecar.backends import best_device
    from hisparse_sidecar.config import Backend

    device = best_device()
    return {name: _refusal(name, device) for name in get_args(Backend) if name != "auto"}


def _refusal(backend: "Backend", device: str) -> str | None:
    from hisparse_sidecar.backends import ops_of
    from hisparse_sidecar.errors import InvalidArgument

    try:
        ops_of(backend, device)
    except InvalidArgument as error:
        return str(error)
    return None


def _distribution_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
