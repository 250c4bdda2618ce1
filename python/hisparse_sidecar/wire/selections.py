"""SelectionConfig as a message, and back."""

from typing import cast

from hisparse_sidecar._proto.hisparse.v1 import selection_pb2
from hisparse_sidecar.config import IndexSource, SelectionConfig
from hisparse_sidecar.errors import InvalidArgument

_PREFIX = "INDEX_SOURCE_"
_NUMBERS = ("num_kept_blocks", "routed_heads", "candidates")


def encode_selection(selection: SelectionConfig) -> selection_pb2.Selection:
    """Every field set."""
    return selection_pb2.Selection(
        index_source=_PREFIX + selection.index_source.upper(),
        **{name: getattr(selection, name) for name in _NUMBERS},
    )


def decode_selection(message: selection_pb2.Selection, default: SelectionConfig) -> SelectionConfig:
    """The selection, with the numbers of `default` where the message leaves one unset.

    Raises:
        InvalidArgument: the index source is unset or unknown, or a number is out of range.
    """
    known = selection_pb2.IndexSource.values()[1:]
    if message.index_source not in known:
        found = int(message.index_source)
        raise InvalidArgument(f"index_source is number {found}, needs one of {known}")
    name = selection_pb2.IndexSource.Name(message.index_source).removeprefix(_PREFIX).lower()
    numbers = {
        name: getattr(message if message.HasField(name) else default, name) for name in _NUMBERS
    }
    return SelectionConfig(index_source=cast(IndexSource, name), **numbers)
