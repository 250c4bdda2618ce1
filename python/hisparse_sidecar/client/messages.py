"""Requests out of plain numbers: one that no field can hold is refused as the server would."""

from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from hisparse_sidecar.errors import InvalidArgument

_Message = TypeVar("_Message", bound=Message)
_RANGES = {
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
}


def request(message: type[_Message], /, **values: object) -> _Message:
    """A request of the type `message`; a value of None leaves its field unset.

    Raises:
        InvalidArgument: an integer does not fit its field, or a value is no integer.
    """
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        field_type = message.DESCRIPTOR.fields_by_name[name].type
        if field_type in _RANGES:
            _check(name, value, _RANGES[field_type])
    return message(**given)


def _check(name: str, value: object, bounds: tuple[int, int]) -> None:
    low, high = bounds
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, int) or not low <= one <= high:
            raise InvalidArgument(f"{name} is {one!r}, needs {low} to {high}")
