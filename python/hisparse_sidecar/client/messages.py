"""Requests out of plain numbers: one that no field can hold is refused as the server would."""

from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from hisparse_sidecar.errors import InvalidArgument

_Message = TypeVar("_Message", bound=Message)
_RANGES = {
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
}


def request(message: type[_Message], /, **values: object) -> _Message:
    """A request of the type `message`; a value of None leaves its field unset.

    Raises:
        InvalidArgument: an integer does not fit its field, or a value is no integer.
    """
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        _check(name, value, message.DESCRIPTOR.fields_by_name[name].type)
    return message(**given)


def _check(name: str, value: object, field_type: int) -> None:
    if field_type not in _RANGES:
        return
    low, high = _RANGES[field_type]
    if not isinstance(value, int) or not low <= value <= high:
        raise InvalidArgument(f"{name} is {value!r}, needs {low} to {high}")
