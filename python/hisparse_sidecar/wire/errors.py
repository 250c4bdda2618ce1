"""Exceptions and gRPC statuses, both ways: the table that region.proto documents."""

# ruff: noqa: N818 - named for what was found, as the exceptions of the core are

import grpc

from hisparse_sidecar.errors import (
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

_MAX_MESSAGE_CHARS = 1024  # HTTP/2 headers carry it


class UnknownRegion(HisparseError):
    """The caller has no region of this id."""


class NotOwner(HisparseError):
    """The region, sequence or step belongs to another client."""


class Unauthenticated(HisparseError):
    """The call carries no token, or one that is not valid (any more)."""


class LimitExceeded(HisparseError):
    """A limit of the server on one client; see GetServerInfo."""


class Draining(HisparseError):
    """The server is shutting down and takes nothing new."""


class ServerUnavailable(HisparseError):
    """The server cannot be reached, or went away during the call."""


class DeadlineExceeded(HisparseError):
    """The call did not end in time."""


_Code = grpc.StatusCode
_CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidArgument: _Code.INVALID_ARGUMENT,
    ValueError: _Code.INVALID_ARGUMENT,
    OverflowError: _Code.INVALID_ARGUMENT,  # a number that no integer of the core can hold
    HostPoolFull: _Code.RESOURCE_EXHAUSTED,
    DeviceArenaFull: _Code.RESOURCE_EXHAUSTED,
    LimitExceeded: _Code.RESOURCE_EXHAUSTED,
    TierFull: _Code.RESOURCE_EXHAUSTED,
    UnknownSequence: _Code.NOT_FOUND,
    UnknownRegion: _Code.NOT_FOUND,
    StaleHandle: _Code.FAILED_PRECONDITION,
    WrongState: _Code.FAILED_PRECONDITION,
    NotOwner: _Code.PERMISSION_DENIED,
    Unauthenticated: _Code.UNAUTHENTICATED,
    Draining: _Code.UNAVAILABLE,
    TierDown: _Code.UNAVAILABLE,
    DeadlineExceeded: _Code.DEADLINE_EXCEEDED,
    DeadlinePassed: _Code.DEADLINE_EXCEEDED,
    RegionError: _Code.INTERNAL,
    HisparseError: _Code.INTERNAL,
}
_CLASSES: dict[str, type[Exception]] = {kind.__name__: kind for kind in _CODES}

# for a status that no servicer made: gRPC itself did, or a proxy
_CLASS_OF_BARE_CODE: dict[grpc.StatusCode, type[Exception]] = {
    _Code.UNAVAILABLE: ServerUnavailable,
    _Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    _Code.CANCELLED: ServerUnavailable,
    _Code.UNAUTHENTICATED: Unauthenticated,
    _Code.RESOURCE_EXHAUSTED: LimitExceeded,
    _Code.INVALID_ARGUMENT: InvalidArgument,
}
_CODE_OF_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in _Code}


def status_of(error: Exception) -> tuple[grpc.StatusCode, str, str]:
    """Code, exception name and message that a call answers with when `error` ended it.

    An exception that is none of ours tells the caller its type only: it is a fault of the server.
    """
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind], kind.__name__, str(error)[:_MAX_MESSAGE_CHARS]
    message = f"internal error of type {type(error).__name__}"
    return _Code.INTERNAL, HisparseError.__name__, message


def error_of(code: grpc.StatusCode, name: str | None, message: str) -> Exception:
    """The exception that the call raises in process, from the status that it answered with."""
    kind = _CLASSES.get(name or "") or _CLASS_OF_BARE_CODE.get(code, HisparseError)
    return kind(message)


def code_of_number(number: int) -> grpc.StatusCode:
    """The gRPC status code of a number; UNKNOWN where there is none."""
    return _CODE_OF_NUMBER.get(number, _Code.UNKNOWN)
