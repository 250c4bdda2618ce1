"""Pages that go to files and come back while another sequence decodes, at a small size."""

from dataclasses import replace

import pytest

from benchmarks.suite_round_trip import Size, measure_trips
from benchmarks.trips import Trips

SMALL = Size(num_layers=2, num_tokens=9 * 64 + 5, total_bytes=5_000_000, device="cpu")


def test_every_byte_comes_back() -> None:
    found = {row.metric: row.ours for row in measure_trips(SMALL)}
    assert found["wrong bytes"] == 0
    assert found["steps that differ"] == 0
    assert found["GB moved"] >= 0.005
    assert found["decode steps meanwhile"] >= 1


def test_a_byte_that_has_changed_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    bring_up = Trips.bring_up

    def bring_up_and_spoil(trips: Trips, traveller) -> None:
        bring_up(trips, traveller)
        row = trips.sidecar.host_row_id(traveller.sequences[1], 3)
        trips.sidecar.host.on_cpu().kv_rows[1][row, 7] ^= 1

    monkeypatch.setattr(Trips, "bring_up", bring_up_and_spoil)
    with pytest.raises(AssertionError, match="1 bytes, 0 steps differ"):
        list(measure_trips(replace(SMALL, total_bytes=1)))
