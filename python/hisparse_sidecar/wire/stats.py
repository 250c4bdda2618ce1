"""SidecarStats as a message, and back."""

from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from hisparse_sidecar._core import Stats
from hisparse_sidecar._proto.hisparse.v1 import sequence_pb2, sidecar_pb2
from hisparse_sidecar.stats import (
    GroupTraffic,
    SelectionCounts,
    SidecarStats,
    TierBytes,
    Traffic,
)

_Message = TypeVar("_Message", bound=Message)
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class CoreStats:
    """The core's `Stats`, of a sidecar in another process; the same fields."""

    sequences: int
    host_pages_total: int
    host_pages_free: int
    host_pages_reserved: int
    host_pages_shared: int
    host_pages_leased: int
    slots_total: int
    slots_used: int
    window_slots_total: int
    window_slots_used: int
    table_tokens_total: int
    table_tokens_used: int
    table_blocks_total: int
    table_blocks_used: int
    pooled_keys_total: int
    pooled_keys_used: int
    state_rows_total: int
    state_rows_used: int
    opened: int
    closed: int
    forked: int
    truncated: int
    refused: int
    appended_tokens: int
    copied_pages: int


def encode_stats(stats: SidecarStats) -> sidecar_pb2.GetStatsResponse:
    """Every field set."""
    return sidecar_pb2.GetStatsResponse(
        core=_encode(stats.core, sidecar_pb2.CoreStats),
        groups=[_encode_group(group) for group in stats.groups],
        steps=stats.steps,
        aborted_steps=stats.aborted_steps,
        held=encode_tier_bytes(stats.held),
    )


def decode_stats(message: sidecar_pb2.GetStatsResponse) -> SidecarStats:
    """The snapshot; its `core` has the fields of the core's own class."""
    return SidecarStats(
        core=cast(Stats, _decode(message.core, CoreStats)),
        groups=tuple(_decode_group(group) for group in message.groups),
        steps=message.steps,
        aborted_steps=message.aborted_steps,
        held=decode_tier_bytes(message.held),
    )


def encode_tier_bytes(held: TierBytes) -> sequence_pb2.TierBytes:
    """Every field set."""
    return _encode(held, sequence_pb2.TierBytes)


def decode_tier_bytes(message: sequence_pb2.TierBytes) -> TierBytes:
    """The bytes held in each tier."""
    return _decode(message, TierBytes)


def _encode_group(group: GroupTraffic) -> sidecar_pb2.GroupTraffic:
    return sidecar_pb2.GroupTraffic(
        rows=_encode(group.rows, sidecar_pb2.Traffic),
        blocks=_encode(group.blocks, sidecar_pb2.Traffic),
        prefill_blocks=_encode(group.prefill_blocks, sidecar_pb2.Traffic),
        prefill_row_bytes=group.prefill_row_bytes,
        spilled_bytes=group.spilled_bytes,
        selection=_encode(group.selection, sidecar_pb2.SelectionCounts),
    )


def _decode_group(message: sidecar_pb2.GroupTraffic) -> GroupTraffic:
    return GroupTraffic(
        rows=_decode(message.rows, Traffic),
        blocks=_decode(message.blocks, Traffic),
        prefill_blocks=_decode(message.prefill_blocks, Traffic),
        prefill_row_bytes=message.prefill_row_bytes,
        spilled_bytes=message.spilled_bytes,
        selection=_decode(message.selection, SelectionCounts),
    )


def _encode(value: object, kind: type[_Message]) -> _Message:
    """A message of plain numbers, named as the attributes of `value`."""
    return kind(**{name: getattr(value, name) for name in kind.DESCRIPTOR.fields_by_name})


def _decode(message: Message, kind: type[_Value]) -> _Value:
    """A dataclass of plain numbers, named as the fields of `message`."""
    names = [field.name for field in fields(cast(Any, kind))]
    return kind(**{name: getattr(message, name) for name in names})
