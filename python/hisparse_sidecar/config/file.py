"""A `SidecarConfig` from plain values: a JSON or TOML file, flags, or both."""

import json
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hisparse_sidecar.config import SelectionConfig, SidecarConfig

_Dataclass = TypeVar("_Dataclass")
_Value = TypeVar("_Value")


def read_values(path: Path) -> dict[str, Any]:
    """The one object of a file: TOML where its name ends in .toml, else JSON.

    Raises:
        ValueError: it is not what its name says, or not an object, or it is TOML and Python, older
            than 3.11, cannot read that.
        OSError: it cannot be read.
    """
    if path.suffix == ".toml":
        return _read_toml(path)
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, need one object")
    return values


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:
        found = ".".join(map(str, sys.version_info[:2]))
        message = f"{path}: Python {found} reads no TOML, need 3.11 or the same as JSON"
        raise ValueError(message) from None
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from None


def build_config(values: Mapping[str, Any]) -> SidecarConfig:
    """Make a configuration from nested plain values.

    Args:
        values: fields of `SidecarConfig`; `model` and `selection` are objects of their own fields.

    Raises:
        ValueError: a key is unknown (the message lists the known ones), one is missing, or a value
            has the wrong type or is out of range.
    """
    return build_dataclass(SidecarConfig, values, "")


def change_selection(
    selection: SelectionConfig, changes: Mapping[str, Any], prefix: str
) -> SelectionConfig:
    """`selection` with some of its fields changed.

    Args:
        selection: what is changed.
        changes: plain values of some of its fields.
        prefix: what stands before a field's name in messages, as in `layers.3.`.

    Raises:
        ValueError: see `build_config`.
    """
    return build_dataclass(SelectionConfig, {**asdict(selection), **changes}, prefix)


def build_dataclass(kind: type[_Dataclass], values: Mapping[str, Any], prefix: str) -> _Dataclass:
    """Make a dataclass from plain values of its fields; see `build_config`.

    Args:
        kind: the dataclass; its fields are numbers, strings, tuples of integers or dataclasses.
        values: fields by name.
        prefix: what stands before a field's name in messages, as in `model.`.

    Raises:
        ValueError: see `build_config`.
    """
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    _refuse_unknown(values, set(known), prefix)
    for name, field in known.items():
        required = field.default is MISSING and field.default_factory is MISSING
        if required and name not in values:
            raise ValueError(f"key {prefix}{name} is missing")
    return kind(**{name: _convert(values[name], hints[name], prefix + name) for name in values})


def merge_values(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values of both, nested objects merged; where both have a plain value, `above` wins."""
    merged = dict(below)
    for name, value in above.items():
        nested = isinstance(value, dict) and isinstance(below.get(name), dict)
        merged[name] = merge_values(below[name], value) if nested else value
    return merged


def _refuse_unknown(values: Mapping[str, Any], known: set[str], prefix: str) -> None:
    unknown = sorted(set(values) - known)
    if unknown:
        named = ", ".join(prefix + name for name in unknown)
        listed = ", ".join(prefix + name for name in sorted(known))
        raise ValueError(f"unknown key {named}; known keys: {listed}")


def _convert(value: object, hint: object, key: str) -> object:
    """`value` as the field of type `hint` wants it, or a ValueError that names the key."""
    if isinstance(hint, type) and is_dataclass(hint):
        return build_dataclass(hint, _require(value, dict, key, "an object"), key + ".")
    if get_origin(hint) in (Union, types.UnionType):
        return None if value is None else _convert(value, get_args(hint)[0], key)
    if get_origin(hint) is tuple:
        items = list(value) if isinstance(value, tuple) else value
        listed = _require(items, list, key, "a list of integers")
        return tuple(_require(item, int, key, "a list of integers") for item in listed)
    return _convert_plain(value, hint, key)


def _convert_plain(value: object, hint: object, key: str) -> object:
    if hint is bool:
        return _require(value, bool, key, "true or false")
    if hint is int:
        return _require(value, int, key, "an integer")
    if hint is float:
        number = value if isinstance(value, float) else _require(value, int, key, "a number")
        return float(number)
    return _require(value, str, key, "a string")


def _require(value: object, kind: type[_Value], key: str, what: str) -> _Value:
    # bool is an int to Python, and not to a reader
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"key {key} is {value!r}, need {what}")
    return value
