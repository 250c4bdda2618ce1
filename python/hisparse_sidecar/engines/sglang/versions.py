"""Which SGLang is installed, and which are supported."""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from hisparse_sidecar.errors import InvalidArgument

OLDEST, NEWEST = "0.5.17", "0.5.23"


@dataclass(frozen=True)
class EngineVersions:
    """What the start-up line names."""

    sglang: str
    torch: str
    hisparse: str

    def __str__(self) -> str:
        return f"sglang {self.sglang}, torch {self.torch}, hisparse-sidecar {self.hisparse}"


def installed_versions() -> EngineVersions:
    """Versions as the installed packages state them; "unknown" for one that is on no package."""
    return EngineVersions(*(_version(name) for name in ("sglang", "torch", "hisparse-sidecar")))


def check_sglang(found: str) -> None:
    """Raises InvalidArgument unless an SGLang of this version is supported."""
    needed = f"this hisparse-sidecar needs {OLDEST} to {NEWEST}"
    try:
        supported = _numbers(OLDEST) <= _numbers(found) <= _numbers(NEWEST)
    except ValueError:
        raise InvalidArgument(f"sglang is {found!r}, no version of it; {needed}") from None
    if not supported:
        raise InvalidArgument(f"sglang is {found}, {needed}")


def _numbers(text: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise ValueError(text)
    return tuple(map(int, match.groups()))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
