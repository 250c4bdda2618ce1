"""Versions of everything that a result depends on, and the backends that this build has."""

import platform
from importlib import metadata
from typing import get_args

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


def find_backends() -> list[str]:
    """Names that `SidecarConfig.backend` takes besides "auto"."""
    from hisparse_sidecar.config import Backend

    return [name for name in get_args(Backend) if name != "auto"]


def _distribution_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
