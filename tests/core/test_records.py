import pytest

from hisparse_sidecar._core import SequenceRanges, Stats
from hisparse_sidecar.errors import InvalidArgument


def test_records_of_numbers_are_made_again_from_their_fields(host) -> None:
    sequence = host.manager.open_sequence(100, 20, slots=8, window_slots=4)
    ranges, stats = host.manager.ranges(sequence), host.manager.stats()
    assert SequenceRanges.from_dict(ranges.as_dict()) == ranges
    assert Stats.from_dict(stats.as_dict()) == stats


def test_a_record_refuses_fields_that_it_has_not_or_cannot_hold(host) -> None:
    sequence = host.manager.open_sequence(100, 20, slots=8, window_slots=4)
    fields = host.manager.ranges(sequence).as_dict()
    for changes in ({"slot_base": -1}, {"slot_base": 2**64}, {"unknown": 1}):
        with pytest.raises(InvalidArgument):
            SequenceRanges.from_dict(fields | changes)
    fields["slot_bass"] = fields.pop("slot_base")
    with pytest.raises(InvalidArgument, match="no slot_base"):
        SequenceRanges.from_dict(fields)
