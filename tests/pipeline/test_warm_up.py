"""After a prompt its last rows' selection lies in the hot buffers: fewer misses, the same bits."""

import pytest

from hisparse_sidecar import LayerOutputs, Sidecar
from hisparse_sidecar.config import SelectionConfig
from tests.pipeline.world import (
    FLAT,
    HISA,
    Rows,
    assert_same_bits,
    prefill,
    random_rows,
    run_step,
    small_config,
)

LENGTHS = (400, 330)


def first_steps(
    warm_rows: int, hot_slots: int, selection: SelectionConfig
) -> tuple[list[LayerOutputs], list[int]]:
    """Outputs of everything, and how often the first decode step missed, by group."""
    config = small_config(warm_rows=warm_rows, hot_slots=hot_slots, selection=selection)
    with Sidecar(config) as sidecar:
        sequences = [sidecar.open(length, 4) for length in LENGTHS]
        prompts = [Rows(sequence, LENGTHS[at], at) for at, sequence in enumerate(sequences)]
        outputs = run_step(sidecar, prompts, "prefill")
        sidecar.check_integrity()
        before = [group.rows.misses for group in sidecar.stats().groups]
        for step in (1, 2, 3):
            rows = [Rows(sequence, 1, 10 * step + at) for at, sequence in enumerate(sequences)]
            outputs += run_step(sidecar, rows, "decode")
            if step == 1:
                after = [group.rows.misses for group in sidecar.stats().groups]
        sidecar.check_integrity()
    return outputs, [now - then for now, then in zip(after, before, strict=True)]


@pytest.mark.parametrize("selection", [FLAT, HISA], ids=["flat", "hisa"])
@pytest.mark.parametrize(("warm_rows", "hot_slots", "share"), [(1, 48, 0.95), (9, 300, 0.5)])
def test_the_first_step_misses_less_and_nothing_else_changes(
    warm_rows: int, hot_slots: int, share: float, selection: SelectionConfig
) -> None:
    cold, cold_misses = first_steps(0, hot_slots, selection)
    warm, warm_misses = first_steps(warm_rows, hot_slots, selection)

    assert_same_bits(warm, cold)
    for found, before in zip(warm_misses, cold_misses, strict=True):
        assert before > 80  # nearly all that two rows select of 48 each
        assert found < share * before


def test_a_prompt_shorter_than_the_warm_rows_is_whole_in_its_hot_buffers() -> None:
    with Sidecar(small_config(warm_rows=9, hot_slots=64)) as sidecar:
        sequence = sidecar.open(5, 2)
        prefill(sidecar, sequence, 5, 1)
        run_step(sidecar, [Rows(sequence, 1, 2)], "decode")
        sidecar.check_integrity()
        assert [group.rows.misses for group in sidecar.stats().groups] == [0, 0]


def test_an_aborted_chunk_leaves_nothing_warm() -> None:
    config = small_config(warm_rows=4, hot_slots=64)
    with Sidecar(config) as sidecar:
        sequence = sidecar.open(100, 2)
        sidecar.begin_step([(sequence, 60)], "prefill")
        sidecar.run_layer(0, random_rows(config, 0, 60, 1))
        assert (sidecar._tiers.device.hot[0].slot_item >= 0).any()
        sidecar.abort_step()
        assert (sidecar._tiers.device.hot[0].slot_item == -1).all()
        sidecar.check_integrity()
