"""The exceptions that the sidecar raises: one tree; messages name what was found and needed."""

from hisparse_sidecar._core import (
    DeviceArenaFull,
    HisparseError,
    HostPoolFull,
    InvalidArgument,
    RegionError,
    StaleHandle,
    UnknownSequence,
    WrongState,
)

__all__ = [
    "DeviceArenaFull",
    "HisparseError",
    "HostPoolFull",
    "InvalidArgument",
    "RegionError",
    "StaleHandle",
    "UnknownSequence",
    "WrongState",
]
