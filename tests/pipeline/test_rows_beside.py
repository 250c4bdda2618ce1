"""Rows that come in beside attention: who waits for them, and when."""

from functools import partial

import pytest
import torch

from hisparse_sidecar import LayerOutputs, Sidecar
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.pipeline.pipeline import LayerPipeline
from hisparse_sidecar.side_stream import SideStream
from tests.far_apart import keep_far_apart
from tests.pipeline.frames import TwoLives, frame_config
from tests.pipeline.world import (
    Rows,
    assert_same_bits,
    prefill,
    random_rows,
    run_step,
    small_config,
)

HISA = SelectionConfig("hisa", num_kept_blocks=3, gate="off")
TWO_ROWS = partial(small_config, overlap_rows=1, max_step_rows=2, hot_slots=96)
SLOW = pytest.mark.parametrize("slow", ["beside", "layer"])


def life(overlap_rows: int) -> list[LayerOutputs]:
    """Three sequences, whose hot buffers hold little more than a row selects."""
    outputs = []
    with Sidecar(small_config(overlap_rows=overlap_rows)) as sidecar:
        sequences = [sidecar.open(200 + number, 8) for number in range(3)]
        for number, sequence in enumerate(sequences):
            prefill(sidecar, sequence, 200 + number, number)
        for seed in (10, 20, 30):
            rows = [Rows(one, 1, seed + place) for place, one in enumerate(sequences)]
            outputs += run_step(sidecar, rows, "decode")
        sidecar.check_integrity()
        missed = sidecar.stats().groups[0].rows.misses
    assert missed > 3 * 8, missed
    return outputs


def broken_step(sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of two rows, open, whose first layer has failed in attention."""
    sequence = sidecar.open(200, 8)
    prefill(sidecar, sequence, 200, 1)
    sidecar.begin_step([(sequence, 2)], "decode")

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(LayerPipeline, "_attend", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            sidecar.run_layer(0, random_rows(sidecar.config, 0, 2, 2))


@pytest.mark.gpu
@SLOW
@pytest.mark.parametrize("overlap_rows", [1, 2])
def test_they_are_read_when_they_are_there_however_far_one_stream_is_behind_the_other(
    overlap_rows: int, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = life(0)
    keep_far_apart(monkeypatch, slow)

    assert_same_bits(life(overlap_rows), wanted)


@pytest.mark.gpu
@SLOW
def test_in_a_graph_they_are_read_when_they_are_there(
    slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_far_apart(monkeypatch, slow)
    lives = TwoLives(frame_config(HISA), seed=6, overlap_rows=2)
    while lives.steps < 30:
        lives.act()
    assert lives.graph._recorded is not None
    lives.end()


@pytest.mark.gpu
def test_an_aborted_step_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sidecar(TWO_ROWS()) as sidecar:
        broken_step(sidecar, monkeypatch)
        with sidecar._tiers.copies.beside():
            torch.cuda._sleep(200_000_000)  # as if they were slow
        begun = sidecar._tiers.copies.mark()

        sidecar.abort_step()

        torch.cuda.current_stream().synchronize()
        assert begun.has_passed


@pytest.mark.cpu_only
def test_the_end_of_an_aborted_step_joins_their_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[SideStream] = []

    def note(side: SideStream) -> None:
        joined.append(side)

    with Sidecar(TWO_ROWS()) as sidecar:
        broken_step(sidecar, monkeypatch)
        monkeypatch.setattr(SideStream, "join", note)
        sidecar.abort_step()
        assert sidecar._tiers.copies in joined
