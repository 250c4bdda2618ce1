"""The exceptions that the sidecar raises: one tree; messages name what was found and needed."""

from hisparse_sidecar._core import (
    DeadlinePassed,
    DeviceArenaFull,
    HisparseError,
    HostPoolFull,
    InvalidArgument,
    RegionError,
    StaleHandle,
    TierDown,
    TierFull,
    UnknownSequence,
    WrongState,
)

__all__ = [
    "DeadlinePassed",
    "DeviceArenaFull",
    "HisparseError",
    "HostPoolFull",
    "InvalidArgument",
    "RegionError",
    "StaleHandle",
    "TierDown",
    "TierFull",
    "UnknownSequence",
    "WrongState",
]
