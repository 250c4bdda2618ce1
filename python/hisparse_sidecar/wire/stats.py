"""SidecarStats as a message, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from hisparse_sidecar._core import Stats, TierState
from hisparse_sidecar._proto.hisparse.v1 import sequence_pb2, sidecar_pb2
from hisparse_sidecar.engine_stats import (
    EngineRequests,
    EngineStats,
    PublishedStats,
    SelectionCalls,
)
from hisparse_sidecar.stats import (
    GroupTraffic,
    SelectionCounts,
    SidecarStats,
    TierBytes,
    Traffic,
)

_Message = TypeVar("_Message", bound=Message)
_Value = TypeVar("_Value")
_CONDITIONS: dict[str, sidecar_pb2.TierCondition] = {
    "serving": sidecar_pb2.TIER_CONDITION_SERVING,
    "degraded": sidecar_pb2.TIER_CONDITION_DEGRADED,
    "full": sidecar_pb2.TIER_CONDITION_FULL,
}


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


@dataclass(frozen=True)
class LowerTierState:
    """The core's `TierState`, of a sidecar in another process; the same attributes."""

    name: str
    condition: str
    pages: int
    used_bytes: int
    capacity_bytes: int
    demoted: int
    promoted: int
    missed: int
    corrupt: int
    failed: int
    refused: int
    left: int
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True)
class ServerStats:
    """What a server says of itself.

    Attributes:
        sidecar: of its sidecar.
        tiers: below the host pool, the nearest first.
        tenants: by name, pages of the host pool and the most that they may be; None = no limit.
        ended_clients: because they were silent for too long.
        engines: processes of the engine beside which the server runs.
    """

    sidecar: SidecarStats
    tiers: Sequence[TierState]
    tenants: Mapping[str, tuple[int, int | None]]
    ended_clients: int
    engines: Sequence[PublishedStats] = ()

    @property
    def degraded(self) -> bool:
        """Whether a tier takes no pages now; the host pool serves without it."""
        return any(tier.condition != "serving" for tier in self.tiers)


def encode_stats(stats: ServerStats) -> sidecar_pb2.GetStatsResponse:
    """Every field set."""
    sidecar = stats.sidecar
    return sidecar_pb2.GetStatsResponse(
        core=_encode(sidecar.core, sidecar_pb2.CoreStats),
        groups=[_encode_group(group) for group in sidecar.groups],
        steps=sidecar.steps,
        aborted_steps=sidecar.aborted_steps,
        held=encode_tier_bytes(sidecar.held),
        tiers=[_encode_tier(tier) for tier in stats.tiers],
        tenants=[
            sidecar_pb2.TenantUsage(name=name, pages=pages, quota_pages=quota_pages)
            for name, (pages, quota_pages) in stats.tenants.items()
        ],
        degraded=stats.degraded,
        ended_clients=stats.ended_clients,
        engines=[encode_engine(engine) for engine in stats.engines],
    )


def decode_stats(message: sidecar_pb2.GetStatsResponse) -> ServerStats:
    """The snapshot; `core` and the tiers have the attributes of the core's own classes."""
    sidecar = SidecarStats(
        core=cast(Stats, _decode(message.core, CoreStats)),
        groups=tuple(_decode_group(group) for group in message.groups),
        steps=message.steps,
        aborted_steps=message.aborted_steps,
        held=decode_tier_bytes(message.held),
    )
    tenants = {
        one.name: (one.pages, one.quota_pages if one.HasField("quota_pages") else None)
        for one in message.tenants
    }
    tiers = [_decode_tier(tier) for tier in message.tiers]
    engines = [_decode_engine(engine) for engine in message.engines]
    return ServerStats(sidecar, tiers, tenants, message.ended_clients, engines)


def encode_engine(published: PublishedStats) -> sidecar_pb2.EngineStats:
    """Every field set."""
    stats = published.stats
    return sidecar_pb2.EngineStats(
        engine=stats.engine,
        rank=stats.rank,
        pid=published.pid,
        is_alive=published.is_alive,
        age_seconds=published.age_seconds,
        core=_encode(stats.core, sidecar_pb2.CoreStats),
        groups=[_encode_group(group) for group in stats.groups],
        held=encode_tier_bytes(stats.held),
        steps=stats.steps,
        refused=stats.refused,
        requests=_encode(stats.requests, sidecar_pb2.EngineRequests),
        prompt_rows_total=stats.prompt_rows_total,
        prompt_rows_free=stats.prompt_rows_free,
        selections=[_encode(calls, sidecar_pb2.SelectionCalls) for calls in stats.selections],
    )


def _decode_engine(message: sidecar_pb2.EngineStats) -> PublishedStats:
    stats = EngineStats(
        engine=message.engine,
        rank=message.rank,
        core=cast(Stats, _decode(message.core, CoreStats)),
        groups=tuple(_decode_group(group) for group in message.groups),
        held=decode_tier_bytes(message.held),
        steps=message.steps,
        refused=message.refused,
        requests=_decode(message.requests, EngineRequests),
        prompt_rows_total=message.prompt_rows_total,
        prompt_rows_free=message.prompt_rows_free,
        selections=tuple(_decode(calls, SelectionCalls) for calls in message.selections),
    )
    return PublishedStats(stats, message.pid, message.age_seconds, message.is_alive)


def _encode_tier(tier: TierState) -> sidecar_pb2.TierState:
    names = set(sidecar_pb2.TierState.DESCRIPTOR.fields_by_name) - {"condition"}
    values: dict[str, Any] = {name: getattr(tier, name) for name in names}
    return sidecar_pb2.TierState(condition=_CONDITIONS[tier.condition], **values)


def _decode_tier(message: sidecar_pb2.TierState) -> TierState:
    names = {field.name for field in fields(LowerTierState)} - {"condition"}
    values: dict[str, Any] = {name: getattr(message, name) for name in names}
    conditions = [name for name, number in _CONDITIONS.items() if number == message.condition]
    condition = conditions[0] if conditions else f"number {message.condition}"
    return cast(TierState, LowerTierState(condition=condition, **values))


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
