"""A field's number means one thing for ever: what was dropped or renamed is not used again."""

from google.protobuf import descriptor_pb2

from hisparse_sidecar._proto.hisparse.v1 import sequence_pb2

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
