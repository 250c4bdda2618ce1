"""A window that held every block and does no more: nothing may take it for one that does."""

import pytest

from hisparse_sidecar import LayerOutputs, Sidecar
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import HisparseError
from tests.pipeline.world import (
    Rows,
    assert_same_bits,
    on_cpu,
    prefill,
    run_step,
    small_config,
)

HISA = SelectionConfig("hisa", num_kept_blocks=3, gate="off")


def grow_and_return(growth: str, window_blocks: int) -> list[LayerOutputs]:
    """A step after a sequence has outgrown a window of 4 blocks and was cut to fit again."""
    with Sidecar(small_config(selection=HISA, window_blocks=window_blocks)) as sidecar:
        sequence = sidecar.open(700, 300)
        prefill(sidecar, sequence, 190, 1)
        run_step(sidecar, [Rows(sequence, 1, 2)], "decode")
        sidecar.check_integrity()
        if growth == "decode":
            for seed in range(10, 80):
                run_step(sidecar, [Rows(sequence, 1, seed)], "decode")
        else:
            prefill(sidecar, sequence, 200, 5)
            prefill(sidecar, sequence, 201, 6)
        sidecar.truncate(sequence, 191)
        sidecar.check_integrity()
        outputs = run_step(sidecar, [Rows(sequence, 1, 999)], "decode")
        sidecar.check_integrity()
        return [on_cpu(output) for output in outputs]


@pytest.mark.parametrize("growth", ["decode", "prefill"])
def test_a_cut_sequence_finds_its_blocks_again(growth: str) -> None:
    assert_same_bits(grow_and_return(growth, 4), grow_and_return(growth, 30))


def test_a_false_claim_to_hold_all_is_found() -> None:
    with Sidecar(small_config(selection=HISA, window_blocks=3)) as sidecar:
        sequence = sidecar.open(700, 300)
        prefill(sidecar, sequence, 400, 1)
        run_step(sidecar, [Rows(sequence, 1, 2)], "decode")
        sidecar.check_integrity()
        sidecar._tiers.loaded.add(sequence, 0)

        with pytest.raises(HisparseError, match="blocks, all 7 are expected"):
            sidecar.check_integrity()
