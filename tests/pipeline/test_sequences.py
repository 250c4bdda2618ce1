"""Lives of sequences: chunks, drafts that are rejected, forks, aborted steps, shared layers."""

import pytest
import torch

from hisparse_sidecar import HisparseError, LayerInputs, Sidecar
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import WrongState
from tests.pipeline.world import (
    FLAT,
    HISA,
    PlainDsa,
    Rows,
    assert_same_bits,
    on_cpu,
    prefill,
    random_rows,
    run_step,
    small_config,
)


@pytest.mark.parametrize("selection", [FLAT, HISA])
@pytest.mark.parametrize("cuts", [[300], [64, 64, 172], [63, 1, 65, 171], [299, 1]])
def test_prefill_in_chunks_leaves_the_same_state(
    cuts: list[int], selection: SelectionConfig
) -> None:
    """Rows of a chunk are random by chunk, so the state is judged by the step that follows."""

    def next_token(chunks: list[int]) -> list:
        config = small_config(selection=selection)
        whole = [random_rows(config, layer, 300, 1) for layer in range(3)]
        with Sidecar(config) as sidecar:
            sequence, start = sidecar.open(300, 1), 0
            for count in chunks:
                sidecar.begin_step([(sequence, count)], "prefill")
                for layer, rows in enumerate(whole):
                    part = {
                        name: None if value is None else value[start : start + count]
                        for name, value in vars(rows).items()
                    }
                    sidecar.run_layer(layer, type(rows)(**part))
                sidecar.commit_step()
                start += count
            sidecar.check_integrity()
            return run_step(sidecar, [Rows(sequence, 1, 2)], "decode")

    assert_same_bits(next_token(cuts), next_token([300]))


def test_rejected_draft_tokens_leave_no_trace() -> None:
    def run(drafts: int) -> list:
        with Sidecar(small_config(max_step_rows=4, hot_slots=200, selection=HISA)) as sidecar:
            sequence, outputs = sidecar.open(254, 30), []
            prefill(sidecar, sequence, 254, 1)
            for seed in range(2, 8):
                if drafts:
                    run_step(sidecar, [Rows(sequence, drafts, 50 + seed)], "decode")
                    sidecar.truncate(sequence, sidecar.length(sequence) - drafts)
                    sidecar.check_integrity()
                outputs += run_step(sidecar, [Rows(sequence, 1, seed)], "decode")
            return outputs

    assert_same_bits(run(3), run(0))
    assert_same_bits(run(4), run(0))


def test_rows_of_one_step_are_those_of_single_steps() -> None:
    config = small_config(max_step_rows=3, hot_slots=200)
    plain = PlainDsa(config)
    with Sidecar(config) as sidecar:
        sequence = sidecar.open(126, 6)
        prefill(sidecar, sequence, 126, 1)
        plain.append(sequence, 126, 1)
        for seed in (2, 3):
            found = run_step(sidecar, [Rows(sequence, 3, seed)], "decode")
            for one, other in zip(found, plain.append(sequence, 3, seed), strict=True):
                assert torch.equal(one.topk_indices, other.topk_indices)
                torch.testing.assert_close(one.out, other.out, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("length", [1, 63, 64, 100, 128, 200, 256])
def test_forks_go_separate_ways(length: int) -> None:
    config = small_config()
    plain = PlainDsa(config)
    with Sidecar(config) as sidecar:
        parent = sidecar.open(256, 4)
        prefill(sidecar, parent, 256, 1)
        plain.append(parent, 256, 1)
        child = sidecar.fork(parent, length, 70)
        plain.fork(parent, child, length)
        for seed in range(2, 5):
            rows = [Rows(parent, 1, seed), Rows(child, 1, 90 + seed)]
            found = run_step(sidecar, rows, "decode")
            for number, part in enumerate(rows):
                wanted = plain.append(part.sequence, 1, part.seed)
                for one, other in zip(found, wanted, strict=True):
                    assert torch.equal(one.topk_indices[number], other.topk_indices[0])
                    torch.testing.assert_close(one.out[number], other.out[0], atol=2e-5, rtol=2e-5)
        sidecar.check_integrity()
        sidecar.close_sequence(parent)
        run_step(sidecar, [Rows(child, 1, 99)], "decode")
        sidecar.check_integrity()


@pytest.mark.parametrize("kind", ["decode", "prefill"])
@pytest.mark.parametrize("layers_run", [0, 1, 2, 3])
def test_an_aborted_step_never_happened(kind: str, layers_run: int) -> None:
    def run(abort: bool) -> list:
        config = small_config(selection=HISA)
        with Sidecar(config) as sidecar:
            sequence = sidecar.open(127, 5)
            prefill(sidecar, sequence, 127, 1)
            if abort:
                sidecar.begin_step([(sequence, 1)], kind)  # type: ignore[arg-type]
                for layer in range(layers_run):
                    sidecar.run_layer(layer, random_rows(config, layer, 1, 66))
                sidecar.abort_step()
                assert sidecar.length(sequence) == 127
                sidecar.check_integrity()
            outputs = run_step(sidecar, [Rows(sequence, 1, 2)], "decode")
            return outputs + run_step(sidecar, [Rows(sequence, 1, 3)], "decode")

    assert_same_bits(run(True), run(False))


def test_a_shared_layer_uses_its_anchors_selection() -> None:
    with Sidecar(small_config()) as sidecar:
        sequence = sidecar.open(200, 1)
        prefill(sidecar, sequence, 200, 1)
        outputs = run_step(sidecar, [Rows(sequence, 1, 2)], "decode")
        assert torch.equal(outputs[0].topk_indices, outputs[1].topk_indices)
        assert not torch.equal(outputs[0].topk_indices, outputs[2].topk_indices)


def test_given_positions_are_attended_to() -> None:
    config = small_config(selection=SelectionConfig("given"))
    with Sidecar(config) as given, Sidecar(small_config()) as flat:
        sequences = given.open(200, 0), flat.open(200, 0)
        wanted = prefill(flat, sequences[1], 200, 1)
        given.begin_step([(sequences[0], 200)], "prefill")
        found = []
        for layer in range(3):
            rows = random_rows(config, layer, 200, 1)
            topk = wanted[layer].topk_indices if config.model.is_anchor(layer) else None
            given_rows = type(rows)(rows.query, rows.kv, topk_indices=topk)
            found.append(on_cpu(given.run_layer(layer, given_rows)))
        given.commit_step()
        assert_same_bits(found, wanted)


def test_sequences_with_different_selections_share_a_step() -> None:
    with Sidecar(small_config()) as sidecar:
        chosen = [FLAT, HISA, SelectionConfig("misa", routed_heads=2)]
        sequences = [sidecar.open(400, 1, selection=selection) for selection in chosen]
        rows = [Rows(sequence, 400, 1) for sequence in sequences]
        together = run_step(sidecar, rows, "prefill")
    for number, selection in enumerate(chosen):
        with Sidecar(small_config(selection=selection)) as sidecar:
            alone = prefill(sidecar, sidecar.open(400, 1), 400, 1)
        for one, other in zip(together, alone, strict=True):
            part = slice(400 * number, 400 * (number + 1))
            assert torch.equal(one.topk_indices[part], other.topk_indices)
            assert torch.equal(one.out[part], other.out)


def test_traffic_counts_what_moved() -> None:
    config = small_config(selection=HISA, hot_slots=100, window_blocks=6)
    with Sidecar(config) as sidecar:
        sequence = sidecar.open(500, 12)
        prefill(sidecar, sequence, 500, 1)
        run_step(sidecar, [Rows(sequence, 1, 2)], "decode")
        first = sidecar.stats().groups[0].rows
        assert (first.requests, first.misses) == (48, 48) or first.misses == 47
        run_step(sidecar, [Rows(sequence, 1, 2)], "decode")
        second = sidecar.stats().groups[0].rows
        assert second.requests == 96
        assert second.misses < 96
        assert second.bytes_in == second.misses * config.kv.row_bytes * 2
        held = sidecar.stats().held
        assert held == sidecar.tier_bytes(sequence)
        assert held.hot_buffer == 100 * 656 * 3


def test_rows_of_the_step_itself_are_no_misses() -> None:
    config = small_config(max_step_rows=3, hot_slots=144)
    with Sidecar(config) as sidecar:
        sequence = sidecar.open(10, 8)
        prefill(sidecar, sequence, 10, 1)
        counts = []
        for count, seed in ((1, 2), (3, 3), (1, 4)):  # everything is selected
            run_step(sidecar, [Rows(sequence, count, seed)], "decode")
            rows = sidecar.stats().groups[0].rows
            counts.append((rows.requests, rows.misses, rows.bytes_in))
        moved = 10 * config.kv.row_bytes * 2
        assert counts == [(11, 10, moved), (11 + 14, 10, moved), (11 + 14 + 15, 10, moved)]


def given_step(sidecar: Sidecar, sequence: int, seed: int, positions: list[int]) -> list:
    """A decode step of one row that attends to `positions`; not committed."""
    config = sidecar.config
    topk = torch.full((1, config.model.topk), -1, dtype=torch.int32)
    topk[0, : len(positions)] = torch.tensor(positions)
    outputs = []
    for layer in range(config.model.num_layers):
        rows = random_rows(config, layer, 1, seed)
        given = topk if config.model.is_anchor(layer) else None
        inputs = LayerInputs(rows.query, rows.kv, topk_indices=given)
        outputs.append(on_cpu(sidecar.run_layer(layer, inputs)))
    return outputs


@pytest.mark.interpreted
def test_a_new_row_that_nobody_selects_gets_a_slot_when_somebody_does() -> None:
    with Sidecar(small_config(selection=SelectionConfig("given"))) as sidecar:
        sequence = sidecar.open(4, 4)
        misses = []
        for seed, positions in enumerate(([0], [0], [0, 1, 2])):
            sidecar.begin_step([(sequence, 1)], "decode")
            given_step(sidecar, sequence, seed, positions)
            sidecar.commit_step()
            sidecar.check_integrity()
            misses.append(sidecar.stats().groups[0].rows.misses)
        assert misses == [0, 0, 1]  # 0 and 2 were new in the steps that selected them first


@pytest.mark.interpreted
def test_a_step_reads_its_own_rows_before_another_rank_has_written_them() -> None:
    found = []
    for is_own in (True, False):
        with Sidecar(small_config(selection=SelectionConfig("given"))) as sidecar:
            sequence = sidecar.open(4, 4)
            step = sidecar.begin_step([(sequence, 1)], "decode")
            if not is_own:
                step.spill_row_ids.fill_(-1)
            found.append(given_step(sidecar, sequence, 1, [0]))
            host_row = sidecar.host.kv_rows[0][sidecar.host_row_id(sequence, 0)]
            assert bool(host_row.any()) == is_own
            del host_row
            sidecar.abort_step()
    assert_same_bits(*found)


@pytest.mark.interpreted
def test_steps_are_ended_before_the_next_begins() -> None:
    config = small_config()
    with Sidecar(config) as sidecar:
        sequence = sidecar.open(10, 10)
        with pytest.raises(WrongState):
            sidecar.run_layer(0, random_rows(config, 0, 1, 1))
        sidecar.begin_step([(sequence, 5)], "prefill")
        for call in (
            lambda: sidecar.begin_step([(sequence, 1)], "decode"),
            lambda: sidecar.fork(sequence, 1, 1),
            lambda: sidecar.truncate(sequence, 1),
            lambda: sidecar.close_sequence(sequence),
            sidecar.commit_step,
            lambda: sidecar.run_layer(1, random_rows(config, 1, 5, 1)),
        ):
            with pytest.raises(WrongState):
                call()
        for layer in range(3):
            sidecar.run_layer(layer, random_rows(config, layer, 5, 1))
        with pytest.raises(WrongState, match="layer 2 ran already"):
            sidecar.run_layer(2, random_rows(config, 2, 5, 1))
        sidecar.commit_step()
        assert sidecar.length(sequence) == 5


def test_integrity_check_sees_a_changed_host_row() -> None:
    with Sidecar(small_config()) as sidecar:
        sequence = sidecar.open(100, 2)
        prefill(sidecar, sequence, 100, 1)
        outputs = run_step(sidecar, [Rows(sequence, 1, 2)], "decode")
        sidecar.check_integrity()
        position = int(outputs[0].topk_indices[0, 0])
        sidecar.host.kv_rows[0][sidecar.host_row_id(sequence, position), 3] ^= 1
        with pytest.raises(HisparseError, match=f"row {position} of layer 0"):
            sidecar.check_integrity()


def test_several_pages_make_one_block() -> None:
    config = small_config(block_tokens=128, window_blocks=2)
    plain = PlainDsa(config)
    with Sidecar(config) as sidecar:
        sequence = sidecar.open(300, 90)
        prefill(sidecar, sequence, 300, 1)
        plain.append(sequence, 300, 1)
        for seed in range(2, 90):
            found = run_step(sidecar, [Rows(sequence, 1, seed)], "decode")
            for one, other in zip(found, plain.append(sequence, 1, seed), strict=True):
                assert torch.equal(one.topk_indices, other.topk_indices)
        sidecar.check_integrity()
