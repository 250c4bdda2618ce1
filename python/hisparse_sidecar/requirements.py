"""Refusals of what a caller gave: InvalidArgument, with what was found and what was needed."""

from collections.abc import Callable
from typing import ParamSpec

from hisparse_sidecar.errors import InvalidArgument

_Args = ParamSpec("_Args")


def require(condition: bool, message: str) -> None:
    """Raises InvalidArgument with `message` unless `condition` holds."""
    if not condition:
        raise InvalidArgument(message)


def require_one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    """Raises InvalidArgument that lists `known` unless `value` is one of them."""
    require(value in known, f"{what} is {value!r}, must be one of {', '.join(sorted(known))}")


def require_legal(
    check: Callable[_Args, object], *args: _Args.args, **kwargs: _Args.kwargs
) -> None:
    """Raises InvalidArgument that says what `check` says, if it raises ValueError."""
    try:
        check(*args, **kwargs)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
