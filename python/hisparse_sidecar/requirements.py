"""Refusals of what a caller gave: InvalidArgument, with what was found and what was needed."""

import math
import operator
from collections.abc import Callable
from numbers import Real
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


def required_int(name: str, value: object) -> int:
    """The integer that `value` is; NumPy's and torch's count.

    Raises:
        InvalidArgument: it is a bool, a float or no number; says what it is.
    """
    if type(value) is int:  # nearly always
        return value
    is_bool = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    try:
        if not is_bool:
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise InvalidArgument(f"{name} is {value!r}, a {type(value).__name__}, needs an integer")


def required_finite(name: str, value: object) -> float:
    """The float that a real number is.

    Raises:
        InvalidArgument: it is infinite, NaN, or no number; says what it is.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            if math.isfinite(value):
                return float(value)
        except OverflowError:  # an integer beyond every float
            pass
    raise InvalidArgument(f"{name} is {value!r}, needs a finite number")


def require_legal(
    check: Callable[_Args, object], *args: _Args.args, **kwargs: _Args.kwargs
) -> None:
    """Raises InvalidArgument that says what `check` says, if it raises ValueError."""
    try:
        check(*args, **kwargs)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
