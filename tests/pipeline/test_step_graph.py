"""One graph for all decode steps of a frame: the bits of steps that run layer by layer."""

import os

import pytest
import torch

from hisparse_sidecar import Sidecar
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import InvalidArgument, WrongState
from hisparse_sidecar.selection.gate_table import Cell, GateTable, Grid, Setting
from tests.pipeline.frames import NotedOps, OpsRecording, TwoLives, frame_config
from tests.pipeline.world import (
    FLAT,
    INDEX_HEADS,
    TOPK,
    Rows,
    prefill,
    random_rows,
    run_step,
)

HISA = SelectionConfig("hisa", num_kept_blocks=3, gate="off")
ADAPTIVE = SelectionConfig("hisa", 4, budget="adaptive", max_blocks=8, gate="off")
RATIO = SelectionConfig("hisa", 2, budget="ratio", max_blocks=4, gate="off")
MISA = SelectionConfig("misa", routed_heads=2)
SELECTIONS = pytest.mark.parametrize("selection", [HISA, FLAT], ids=["hisa", "flat"])


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[OpsRecording]:
    """What stands in for CUDA graphs from now on, as they are made."""
    noted, made = NotedOps(), []

    def record(_: torch.device) -> OpsRecording:
        made.append(OpsRecording(noted))
        return made[-1]

    monkeypatch.setattr("hisparse_sidecar.tiers.tiers.choose_ops", lambda _: noted.ops())
    monkeypatch.setattr("hisparse_sidecar.pipeline.step_graph.recording_for", record)
    return made


def live(
    config_of: SelectionConfig, steps: int, seed: int, overlap_rows: int = 0, **changes: object
) -> TwoLives:
    """Two lives of at least so many decode steps, and what happens to sequences in between."""
    lives = TwoLives(frame_config(config_of, **changes), seed, overlap_rows)
    while lives.steps < steps:
        lives.act()
    return lives


def _end(lives: TwoLives, recordings: list[OpsRecording]) -> None:
    for one in recordings:
        one.forget()
    lives.end()


@pytest.mark.cpu_only
@SELECTIONS
def test_replayed_ops_give_the_bits_of_layers(
    selection: SelectionConfig, recordings: list[OpsRecording]
) -> None:
    lives = live(selection, 40, seed=1)

    # the first run of all makes a recording that it does not use, the second the one of the others
    assert [one.replays > 0 for one in recordings].count(True) == 1
    assert max(one.replays for one in recordings) >= 38
    _end(lives, recordings)


@pytest.mark.cpu_only
@pytest.mark.parametrize("window_blocks", [6, 3], ids=["fetched beside", "read in place"])
def test_replayed_ops_read_blocks_that_no_window_holds(
    window_blocks: int, recordings: list[OpsRecording]
) -> None:
    lives = live(HISA, 30, seed=4, window_blocks=window_blocks)

    assert not lives.frame.is_resident
    assert lives.frame.fits(HISA.num_kept_blocks) == (window_blocks == 6)
    assert max(one.replays for one in recordings) >= 28
    _end(lives, recordings)


@pytest.mark.cpu_only
@pytest.mark.parametrize("selection", [FLAT, HISA, ADAPTIVE], ids=["flat", "hisa", "adaptive"])
@pytest.mark.parametrize("window_blocks", [8, 6, 3])
def test_steps_of_a_frame_have_the_bits_of_others(
    selection: SelectionConfig, window_blocks: int
) -> None:
    lives = live(selection, 15, seed=5, window_blocks=window_blocks)
    lives.end()


@pytest.mark.cpu_only
@pytest.mark.parametrize("overlap_rows", [1, 2, 4, 5])
def test_rows_that_come_in_by_groups_have_the_bits_of_others(
    overlap_rows: int, recordings: list[OpsRecording]
) -> None:
    lives = live(HISA, 40, seed=6, overlap_rows=overlap_rows)

    assert max(one.replays for one in recordings) >= 38
    _end(lives, recordings)


@pytest.mark.cpu_only
def test_replays_count_what_layers_count(recordings: list[OpsRecording]) -> None:
    lives = TwoLives(frame_config(HISA), 1)
    lives.open(100, 40)
    lives.open(70, 40)
    while lives.steps < 8:
        lives.decode()
    framed, plain = (sidecar.stats() for sidecar in (lives.framed, lives.plain))
    for one, other in zip(framed.groups, plain.groups, strict=True):
        assert one.rows.misses > 0
        assert (one.rows, one.spilled_bytes) == (other.rows, other.spilled_bytes)
        assert one.selection == other.selection
    _end(lives, recordings)


@pytest.mark.cpu_only
def test_another_table_of_the_gate_starts_over_and_its_calls_are_counted(
    recordings: list[OpsRecording],
) -> None:
    lives = TwoLives(frame_config(SelectionConfig("hisa", 3)), 1)
    lives.open(100, 40)
    grid = Grid(Setting(INDEX_HEADS, 3, 64, TOPK), (Cell(4096, 1, 1.0, 2.0),))
    both = lives.framed, lives.plain
    for epoch, table in enumerate((GateTable("cpu", (grid,)), None), 1):
        for sidecar in both:
            sidecar.adopt_gate_table(table, epoch)
        before = lives.steps
        while lives.steps < before + 5:
            lives.decode()
        for sidecar in both:
            counts = [group.selection.flat_calls for group in sidecar.stats().groups]
            assert counts == [5] * 2  # by the first table alone
    assert [one.replays for one in recordings if one.replays] == [3, 3]
    _end(lives, recordings)


@pytest.mark.cpu_only
def test_tables_of_all_steps_of_a_frame_lie_in_its_places() -> None:
    config = frame_config(HISA)
    with Sidecar(config) as sidecar:
        frame = sidecar.step_frame(4, 400, sequences=3)
        one, other = sidecar.open(100, 200), sidecar.open(64, 200)
        prefill(sidecar, one, 100, 1)
        prefill(sidecar, other, 64, 2)
        for members in ([one], [other, one], [other]):
            step = sidecar.begin_step([(member, 1) for member in members], "decode", frame=frame)
            assert step.row_pos.tolist()[len(members) :] == [-1] * (4 - len(members))
            lengths = [sidecar.length(member) for member in members]
            assert step.lengths.tolist() == lengths + [0] * (3 - len(members))
            assert step.page_table.shape == (3, 7)
            for table, length in zip(step.page_table, step.lengths.tolist(), strict=True):
                assert (table >= 0).sum() == -(-length // 64)  # nothing of the step before
            for name in ("row_seq", "row_pos", "page_table", "lengths", "pooled_table"):
                assert getattr(step, name).data_ptr() == frame.tables[name].data_ptr()
            assert step.hot_ranges.slot_base.data_ptr() == frame.tables["slot_base"].data_ptr()
            for layer in range(config.model.num_layers):
                sidecar.run_layer(layer, random_rows(config, layer, 4, 5))
            sidecar.commit_step()
        sidecar.check_integrity()


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("sizes", "counts", "message"),
    [
        ((1, 400, 2), (1, 1), "the step has 2 rows, its frame holds 1"),
        ((4, 400, 1), (1, 1), "the step has 2 sequences, its frame holds 1"),
        ((4, 100, 2), (1, 1), r"sequence \d+ has 101 tokens, the frame holds 100"),
    ],
)
def test_a_step_that_does_not_fit_its_frame_changes_nothing(
    sizes: tuple[int, int, int], counts: tuple[int, ...], message: str
) -> None:
    with Sidecar(frame_config(HISA)) as sidecar:
        rows, max_tokens, sequences = sizes
        frame = sidecar.step_frame(rows, max_tokens, sequences=sequences)
        opened = [sidecar.open(100, 5) for _ in counts]
        for sequence in opened:
            prefill(sidecar, sequence, 100, 1)
        members = list(zip(opened, counts, strict=True))
        with pytest.raises(InvalidArgument, match=message):
            sidecar.begin_step(members, "decode", frame=frame)
        assert [sidecar.length(sequence) for sequence in opened] == [100, 100]
        run_step(sidecar, [Rows(opened[0], 1, 3)], "decode")


@pytest.mark.cpu_only
def test_sequences_that_would_go_another_way_are_refused() -> None:
    with Sidecar(frame_config(HISA)) as sidecar:
        frame = sidecar.step_frame(4, 400)
        for options, message in (
            ({"selection": FLAT}, "selects by .*index_source='flat'.*, its frame by"),
            ({"hot_slots": 101}, "has 101 hot slots, the frame holds 100"),
            ({"window_blocks": 1}, "needs 4 window slots, has 3"),
            ({"window_blocks": 9}, "has 11 window slots, the frame holds 10"),
        ):
            sequence = sidecar.open(100, 5, **options)  # type: ignore[arg-type]
            prefill(sidecar, sequence, 100, 1)
            with pytest.raises(InvalidArgument, match=message):
                sidecar.begin_step([(sequence, 1)], "decode", frame=frame)
            sidecar.close_sequence(sequence)


@pytest.mark.cpu_only
def test_frames_and_graphs_that_cannot_be_are_refused() -> None:
    config = frame_config(HISA)
    with Sidecar(config) as sidecar:
        with pytest.raises(InvalidArgument, match="rows of a frame is 0, must be >= 1"):
            sidecar.step_frame(0, 400)
        with pytest.raises(InvalidArgument, match="index_source is given, a frame needs"):
            sidecar.step_frame(4, 400, selection=SelectionConfig("given"))
        with pytest.raises(InvalidArgument, match="audit_one_in of layer 0 is 2, a frame needs 0"):
            sidecar.step_frame(4, 400, selection=SelectionConfig("hisa", 3, audit_one_in=2))
        frame = sidecar.step_frame(4, 400)
        inputs = [random_rows(config, layer, 4, 5) for layer in range(3)]
        with pytest.raises(InvalidArgument, match="inputs of 2 layers, the model has 3"):
            sidecar.step_graph(frame, inputs[:2])
        graph = sidecar.step_graph(frame, inputs)
        with pytest.raises(WrongState, match="no step is open"):
            sidecar.run_graph(graph)
        sequence = sidecar.open(100, 5)
        prefill(sidecar, sequence, 100, 1)
        with pytest.raises(InvalidArgument, match="kind 'prefill', a frame needs None, 'decode'"):
            sidecar.begin_step([(sequence, 1)], "prefill", frame=frame)
        sidecar.begin_step([(sequence, 1)], "decode", padded_rows=4)
        with pytest.raises(WrongState, match="is of another frame and ran 0 layers"):
            sidecar.run_graph(graph)
        sidecar.abort_step()


@pytest.mark.gpu
@pytest.mark.parametrize("window_blocks", [8, 6, 3], ids=["resident", "beside", "in place"])
@pytest.mark.parametrize(
    "selection",
    [HISA, FLAT, ADAPTIVE, RATIO, MISA],
    ids=["hisa", "flat", "adaptive", "ratio", "misa"],
)
def test_one_captured_graph_serves_every_step_of_random_lives(
    selection: SelectionConfig, window_blocks: int
) -> None:
    lives = live(selection, 300, seed=2, window_blocks=window_blocks)
    assert lives.graph._recorded is not None
    lives.end()


@pytest.mark.gpu
@pytest.mark.parametrize("overlap_rows", [1, 2, 4])
def test_one_captured_graph_brings_rows_in_beside_attention(overlap_rows: int) -> None:
    lives = live(HISA, 300, seed=6, overlap_rows=overlap_rows)
    assert lives.graph._recorded is not None
    lives.end()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("window_blocks", [8, 6], ids=["resident", "beside"])
def test_one_captured_graph_serves_thousands_of_steps(window_blocks: int) -> None:
    steps = int(os.environ.get("HISPARSE_GRAPH_STEPS", "10000"))
    lives = live(HISA, steps, seed=3, window_blocks=window_blocks)
    assert lives.graph._recorded is not None
    lives.end()
