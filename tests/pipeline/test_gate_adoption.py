"""Ranks whose machines have different tables choose alike once they have adopted one of them."""

from pathlib import Path

import pytest
import torch

from hisparse_sidecar import Sidecar
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.selection.gate import gpu_name
from hisparse_sidecar.selection.gate_table import (
    Cell,
    GateTable,
    Grid,
    Setting,
    user_table_path,
    write_table,
)
from tests.pipeline.world import INDEX_HEADS, TOPK, Rows, prefill, run_step, small_config

LENGTH, STEPS, KEPT = 300, 4, 3


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sidecar]:
    """Two sidecars; by the first one's file flat is faster at any length, by the second's HISA."""
    config = small_config(selection=SelectionConfig("hisa", num_kept_blocks=KEPT), window_blocks=24)
    gpu, made = gpu_name(torch.device(config.device)), []
    for number, hisa_us in enumerate((2.0, 0.5)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(number)))
        grid = Grid(Setting(INDEX_HEADS, KEPT, 64, TOPK), (Cell(4096, 1, 1.0, hisa_us),))
        write_table(GateTable(gpu, (grid,)), user_table_path(gpu))
        made.append(Sidecar(config))
    return made


def flat_calls(sidecar: Sidecar) -> list[int]:
    """By layer, of a sequence that lives through a few steps."""
    before = [group.selection.flat_calls for group in sidecar.stats().groups]
    sequence = sidecar.open(LENGTH, STEPS)
    prefill(sidecar, sequence, LENGTH, 1)
    for seed in range(STEPS):
        run_step(sidecar, [Rows(sequence, 1, 2 + seed)], "decode")
    sidecar.close_sequence(sequence)
    after = [group.selection.flat_calls for group in sidecar.stats().groups]
    return [now - then for now, then in zip(after, before, strict=True)]


def test_ranks_of_different_files_agree_after_adopting_one(ranks: list[Sidecar]) -> None:
    first, second = ranks
    with first, second:
        assert (flat_calls(first), flat_calls(second)) == ([1 + STEPS] * 2, [0, 0])
        other, _ = second.gate_table()
        for table, wanted in ((first.gate_table()[0], 1 + STEPS), (other, 0), (None, 0)):
            _, epoch = first.gate_table()
            for rank in ranks:
                rank.adopt_gate_table(table, epoch + 1)
            assert first.gate_table() == second.gate_table() == (table, epoch + 1)
            assert [flat_calls(rank) for rank in ranks] == [[wanted] * 2] * 2


def test_a_table_is_refused_inside_a_step_and_with_an_old_epoch(ranks: list[Sidecar]) -> None:
    first, second = ranks
    with first, second:
        before = second.gate_table()
        with pytest.raises(WrongState, match="epoch of the gate is 0, cannot adopt epoch 0"):
            second.adopt_gate_table(*first.gate_table())
        sequence = second.open(LENGTH, STEPS)
        second.begin_step([(sequence, LENGTH)], "prefill")
        with pytest.raises(WrongState, match="step"):
            second.adopt_gate_table(first.gate_table()[0], 1)
        assert second.gate_table() == before
        second.abort_step()
        second.adopt_gate_table(first.gate_table()[0], 1)
        assert second.gate_table() == (first.gate_table()[0], 1)
