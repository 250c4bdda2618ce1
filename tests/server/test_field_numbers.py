"""A field's number means one thing for ever: what was dropped or renamed is not used again."""

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.message import Message

from hisparse_sidecar._proto.hisparse.v1 import sequence_pb2, sidecar_pb2, step_pb2

_NUMBERS = {
    "hot_buffer": 1,
    "block_window": 2,
    "pooled_keys": 3,
    "host": 5,
    "window_tables": 6,
    "hot_tables": 7,
}


def test_bytes_of_the_tiers_keep_their_numbers_and_that_of_the_tables_is_reserved() -> None:
    described = descriptor_pb2.DescriptorProto()
    sequence_pb2.TierBytes.DESCRIPTOR.CopyToProto(described)
    assert {field.name: field.number for field in described.field} == _NUMBERS
    assert [(one.start, one.end) for one in described.reserved_range] == [(4, 5)]
    assert list(described.reserved_name) == ["tables"]


def test_the_tables_of_an_older_server_are_not_taken_for_something_else() -> None:
    old = b"\x08\x01\x20\x63"  # hot_buffer = 1, field 4 = 99
    found = sequence_pb2.TierBytes.FromString(old)
    assert (found.hot_buffer, found.hot_tables, found.window_tables) == (1, 0, 0)


GOLDEN: list[tuple[Message, bytes]] = [
    (
        sequence_pb2.OpenSequenceRequest(max_new_tokens=2, token_ids=[1, 300], tenant="a"),
        b"\x10\x02\x32\x03\x01\xac\x02\x3a\x01a",
    ),
    (sequence_pb2.OpenSequenceResponse(sequence_id=1, cached_tokens=64), b"\x08\x01\x10\x40"),
    (sequence_pb2.PreemptSequenceRequest(sequence_id=5), b"\x08\x05"),
    (sequence_pb2.ResumeSequenceRequest(sequence_id=5), b"\x08\x05"),
    (sequence_pb2.ResumeSequenceResponse(length_tokens=5), b"\x08\x05"),
    (step_pb2.BeginStepRequest(kind=1, token_ids=[1, 300]), b"\x10\x01\x22\x03\x01\xac\x02"),
    (sidecar_pb2.Limits(max_silent_seconds=2.0), b"\x31" + bytes(7) + b"\x40"),
    (
        sidecar_pb2.TierState(
            name="f",
            condition=sidecar_pb2.TIER_CONDITION_DEGRADED,
            pages=3,
            used_bytes=4,
            capacity_bytes=5,
            demoted=6,
            promoted=7,
            missed=8,
            corrupt=9,
            failed=10,
            refused=11,
            left=12,
            bytes_down=13,
            bytes_up=14,
        ),
        b"\x0a\x01f" + bytes(n for field in range(2, 15) for n in (8 * field, field)),
    ),
    (
        sidecar_pb2.TenantUsage(name="a", pages=2, quota_pages=3),
        b"\x0a\x01a\x10\x02\x18\x03",
    ),
    (
        sidecar_pb2.GetStatsResponse(
            tiers=[sidecar_pb2.TierState()],
            tenants=[sidecar_pb2.TenantUsage()],
            degraded=True,
            ended_clients=2,
            engines=[sidecar_pb2.EngineStats()],
        ),
        b"\x32\x00\x3a\x00\x40\x01\x48\x02\x52\x00",
    ),
    (
        sidecar_pb2.EngineStats(
            engine="e",
            rank=2,
            pid=3,
            is_alive=True,
            age_seconds=2.0,
            core=sidecar_pb2.CoreStats(),
            groups=[sidecar_pb2.GroupTraffic()],
            held=sequence_pb2.TierBytes(),
            steps=9,
            refused=10,
            requests=sidecar_pb2.EngineRequests(waiting=1, copying=2, decoding=3),
            prompt_rows_total=12,
            prompt_rows_free=13,
            selections=[sidecar_pb2.SelectionCalls(kind="k", outcome="o", count=3)],
        ),
        b"\x0a\x01e\x10\x02\x18\x03\x20\x01\x29" + bytes(7) + b"\x40\x32\x00\x3a\x00\x42\x00"
        b"\x48\x09\x50\x0a\x5a\x06\x08\x01\x10\x02\x18\x03\x60\x0c\x68\x0d\x72\x08\x0a\x01k\x12\x01o\x18\x03",
    ),
]


@pytest.mark.parametrize(("message", "wire"), GOLDEN, ids=lambda one: type(one).__name__)
def test_the_bytes_of_a_message_stay_as_they_were(message: Message, wire: bytes) -> None:
    assert message.SerializeToString(deterministic=True) == wire
    assert type(message).FromString(wire) == message
