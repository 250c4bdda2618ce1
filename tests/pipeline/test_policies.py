"""Budgets, audits, the gate and layer profiles in whole steps of a sidecar."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hisparse_sidecar import LayerOutputs, Sidecar, SidecarConfig
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.pipeline.index_keys import LayerIndexKeys
from hisparse_sidecar.selection import SelectionQuery
from hisparse_sidecar.selection.gate import gpu_name
from hisparse_sidecar.selection.gate_table import (
    Cell,
    GateTable,
    Grid,
    Setting,
    user_table_path,
    write_table,
)
from hisparse_sidecar.stats import SelectionCounts
from tests.pipeline.world import (
    FLAT,
    INDEX_HEADS,
    Rows,
    assert_same_bits,
    prefill,
    run_step,
    small_config,
)

HISA = SelectionConfig("hisa", num_kept_blocks=3, gate="off")
ADAPTIVE = SelectionConfig(
    "hisa", num_kept_blocks=4, budget="adaptive", max_blocks=12, tail_share=0.1, gate="off"
)
RATIO = SelectionConfig("hisa", num_kept_blocks=2, budget="ratio", max_blocks=3, gate="off")
LENGTH = 900  # 15 blocks


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No table of this machine chooses the path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def run(
    config: SidecarConfig, rows: int = 1, steps: int = 6, length: int = LENGTH
) -> tuple[list[list[LayerOutputs]], list[SelectionCounts]]:
    """A prefill chunk and decode steps of one sequence: outputs of each step, counts of layers."""
    with Sidecar(config) as sidecar:
        sequence = sidecar.open(length, rows * steps)
        parts = [(Rows(sequence, length, 1), "prefill")]
        parts += [(Rows(sequence, rows, seed), "decode") for seed in range(2, 2 + steps)]
        outputs = [run_step(sidecar, [part], kind) for part, kind in parts]
        sidecar.check_integrity()
        return outputs, [group.selection for group in sidecar.stats().groups]


@pytest.mark.parametrize("selection", [ADAPTIVE, RATIO], ids=lambda one: one.budget)
@pytest.mark.parametrize(
    ("rows", "window_blocks"),
    [(1, 1), (1, 4), (1, 8), (1, 13), (2, 4), (2, 9), (70, 1), (70, 5)],
)
def test_budgets_give_the_same_bits_at_any_window_size(
    selection: SelectionConfig, rows: int, window_blocks: int
) -> None:
    def found(window: int) -> tuple[list[list[LayerOutputs]], list[SelectionCounts]]:
        config = small_config(
            selection=selection,
            window_blocks=window,
            max_step_rows=rows,
            hot_slots=48 * rows,
            host_pages=256,
        )
        return run(config, rows)

    outputs, counts = found(window_blocks)
    wanted, wanted_counts = found(24)

    for one, other in zip(outputs, wanted, strict=True):
        assert_same_bits(one, other)
    assert counts == wanted_counts
    assert all(one.doublings for one in counts) == (selection is ADAPTIVE)


def test_adaptive_rows_are_those_of_hisa_with_one_of_the_budgets() -> None:
    selection = replace(ADAPTIVE, tail_share=0.2)
    outputs, counts = run(small_config(selection=selection, window_blocks=24))
    fixed = [
        run(small_config(selection=SelectionConfig("hisa", kept, gate="off"), window_blocks=24))[0]
        for kept in (4, 8, 12)
    ]
    seen = set()
    for step, layers in enumerate(outputs):
        for layer, output in enumerate(layers):
            for row, positions in enumerate(output.topk_indices):
                equal = [
                    torch.equal(one[step][layer].topk_indices[row], positions) for one in fixed
                ]
                assert any(equal)
                seen |= {number for number, same in enumerate(equal) if same and sum(equal) == 1}
    assert seen == {0, 1, 2}
    assert all(0 < one.doubled_rows < one.doublings for one in counts)
    assert all(one.capped_rows for one in counts)


def decoded(selection: SelectionConfig) -> tuple[int, int]:
    """Blocks that one decode step missed in all layers, and how often it doubled a row's."""
    with Sidecar(small_config(selection=selection, window_blocks=4)) as sidecar:
        sequence = sidecar.open(LENGTH, 1)
        prefill(sidecar, sequence, LENGTH, 1)
        before = sum(group.selection.doublings for group in sidecar.stats().groups)
        run_step(sidecar, [Rows(sequence, 1, 2)], "decode")
        groups = sidecar.stats().groups
    block_bytes = small_config().index.page_bytes
    for group in groups:
        # of one row each missed block is read where it lies, and may be copied for the next step
        assert group.blocks.bytes_read_in_place == group.blocks.misses * block_bytes
        assert group.blocks.bytes_in <= group.blocks.misses * block_bytes
    doublings = sum(group.selection.doublings for group in groups) - before
    return sum(group.blocks.misses for group in groups), doublings


def test_blocks_beside_a_full_window_are_read_in_place_and_counted() -> None:
    narrow = SelectionConfig("hisa", num_kept_blocks=4, gate="off")
    kept_by_first_pass, _ = decoded(narrow)

    misses, doublings = decoded(replace(ADAPTIVE, max_blocks=8, tail_share=0.0))

    assert doublings == 2  # the row of either layer that selects
    # what the first pass leaves in the window is not missed again
    assert kept_by_first_pass < misses <= kept_by_first_pass + 4 * doublings


def found_and_wanted(one_in: int) -> tuple[int, int, int]:
    """Rows, tokens and found tokens of an audit, from two whole runs."""
    selected, _ = run(small_config(selection=HISA, window_blocks=24))
    flat, _ = run(small_config(selection=FLAT, window_blocks=24))
    rows = tokens = found = 0
    for number, (one, other) in enumerate(zip(selected, flat, strict=True), start=1):
        for row, (mine, all_of) in enumerate(
            zip(one[0].topk_indices, other[0].topk_indices, strict=True)
        ):
            if (number + row) % one_in == 0:
                wanted = set(all_of.tolist()) - {-1}
                rows, tokens = rows + 1, tokens + len(wanted)
                found += len(wanted & set(mine.tolist()))
    return rows, tokens, found


@pytest.mark.parametrize("one_in", [1, 3, 7])
def test_audited_rows_count_what_flat_would_have_selected(one_in: int) -> None:
    selection = SelectionConfig("hisa", num_kept_blocks=3, gate="off", audit_one_in=one_in)
    outputs, counts = run(small_config(selection=selection, window_blocks=24))
    plain, _ = run(small_config(selection=HISA, window_blocks=24))

    for one, other in zip(outputs, plain, strict=True):
        assert_same_bits(one, other)
    first = counts[0]
    found = first.audited_rows, first.audited_tokens, first.found_tokens
    assert found == found_and_wanted(one_in)
    assert first.skipped_audits == 0
    assert 0 < first.recall_lower_bound() < first.recall < 1


def test_audits_are_skipped_and_counted_where_index_keys_are_not_resident() -> None:
    selection = SelectionConfig("hisa", num_kept_blocks=3, gate="off", audit_one_in=2)
    _, counts = run(small_config(selection=selection, window_blocks=14))  # of 15

    assert all(one.audited_rows == one.audited_tokens == 0 for one in counts)
    assert all(one.skipped_audits == LENGTH // 2 + 3 for one in counts)


def test_only_the_sequences_that_are_resident_and_ask_are_audited() -> None:
    audited = SelectionConfig("hisa", num_kept_blocks=3, gate="off", audit_one_in=1)
    with Sidecar(small_config(window_blocks=24)) as sidecar:
        asks = sidecar.open(130, 2, selection=audited)
        silent = sidecar.open(200, 2, selection=HISA)
        offloaded = sidecar.open(300, 2, selection=audited, window_blocks=2)
        rows = [Rows(asks, 130, 1), Rows(silent, 200, 2), Rows(offloaded, 300, 3)]
        run_step(sidecar, rows, "prefill")
        decoded = [Rows(row.sequence, 1, row.seed + 9) for row in rows]
        run_step(sidecar, decoded, "decode")
        counts = [group.selection for group in sidecar.stats().groups]
    assert all((one.audited_rows, one.skipped_audits) == (131, 301) for one in counts)


def table_of_this_place(flat_up_to: int) -> None:
    """A table by which flat is faster up to a length, where `find_table` looks."""
    gpu = gpu_name(torch.device(small_config().device))
    cells = (Cell(flat_up_to, 1, 1.0, 2.0), Cell(2 * flat_up_to, 1, 2.0, 1.0))
    grid = Grid(Setting(INDEX_HEADS, 3, 64, 48), cells)
    write_table(GateTable(gpu, (grid,)), user_table_path(gpu))


@pytest.mark.parametrize(
    ("gate", "flat_up_to", "window_blocks", "is_flat"),
    [
        ("auto", 1024, 24, True),
        ("auto", 512, 24, False),
        ("off", 1024, 24, False),
        ("auto", 1024, 7, False),  # a flat scan would read all keys from the host
    ],
)
def test_the_gate_takes_flat_where_it_was_faster_and_keys_are_resident(
    gate: str, flat_up_to: int, window_blocks: int, is_flat: bool
) -> None:
    table_of_this_place(flat_up_to)
    selection = SelectionConfig("hisa", num_kept_blocks=3, gate=gate, audit_one_in=5)  # type: ignore[arg-type]

    outputs, counts = run(small_config(selection=selection, window_blocks=window_blocks))

    path = FLAT if is_flat else HISA
    wanted, _ = run(small_config(selection=path, window_blocks=24))
    for one, other in zip(outputs, wanted, strict=True):
        assert_same_bits(one, other)
    assert all(one.flat_calls == 7 * is_flat for one in counts)
    assert all((one.audited_rows == 0) == (is_flat or window_blocks == 7) for one in counts)


def test_a_growing_sequence_leaves_the_flat_path_at_the_tables_length() -> None:
    table_of_this_place(512)
    selection = SelectionConfig("hisa", num_kept_blocks=3)
    config = small_config(selection=selection, window_blocks=24)
    _, counts = run(config, steps=20, length=500)

    assert all(one.flat_calls == 1 + 12 for one in counts)  # up to token 512


def test_a_table_that_is_none_is_refused_before_a_sidecar_holds_anything() -> None:
    path = user_table_path(gpu_name(torch.device(small_config().device)))
    path.parent.mkdir(parents=True)
    path.write_text("[]")
    with pytest.raises(ValueError, match=f"gate table {path}: "):
        Sidecar(small_config())


def test_layers_select_as_their_profile_says(tmp_path: Path) -> None:
    profile = tmp_path / "layers.toml"
    profile.write_text('[layers.2]\nindex_source = "flat"\n')
    config = small_config(selection=HISA, layer_profile=str(profile))

    mixed, _ = run(config)

    hisa, flat = (run(small_config(selection=one))[0] for one in (HISA, FLAT))
    for step, layers in enumerate(mixed):
        assert_same_bits(layers[:2], hisa[step][:2])
        assert_same_bits(layers[2:], flat[step][2:])
    assert not torch.equal(hisa[0][2].topk_indices, flat[0][2].topk_indices)


@pytest.mark.parametrize("source", ["flat", "hisa", "misa", "misa_dagger"])
def test_a_prefix_no_longer_than_topk_is_taken_whole_and_no_key_is_read(source: str) -> None:
    config = small_config(selection=SelectionConfig(source, 4, routed_heads=2, candidates=48))
    topk = config.model.topk
    with Sidecar(config) as sidecar:
        sequence = sidecar.open(topk - 1, 2)
        prefill(sidecar, sequence, topk - 1, 1)
        whole = run_step(sidecar, [Rows(sequence, 1, 2)], "decode")
        blocks = [group.blocks for group in sidecar.stats().groups]
        longer = run_step(sidecar, [Rows(sequence, 1, 3)], "decode")

    for layer in whole:
        assert layer.topk_indices.tolist() == [list(range(topk))]
    assert [one.requests + one.bytes_read_in_place for one in blocks] == [0] * len(blocks)
    assert any(layer.topk_indices[0, -1] == topk for layer in longer)


def test_audits_and_pooled_logits_keep_to_the_bound_on_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    selection = SelectionConfig("hisa", num_kept_blocks=3, gate="off", audit_one_in=1)
    config = small_config(selection=selection, window_blocks=24, max_logits_bytes=1 << 15)
    made = []

    def watch(name: str) -> None:
        plain = getattr(LayerIndexKeys, name)

        def counted(keys: LayerIndexKeys, query: SelectionQuery, *rest: Any) -> Any:
            columns = keys.num_blocks if name == "best_of_all" else 3
            pooled = keys.pooled_columns if name == "best_blocks" else 0
            made.append((query.num_rows, 4 * (columns * 64 + pooled)))
            return plain(keys, query, *rest)

        monkeypatch.setattr(LayerIndexKeys, name, counted)

    watch("best_of_all")
    watch("best_blocks")
    _, counts = run(config)

    assert all(one.audited_rows for one in counts)
    assert all(rows * each <= 1 << 15 or rows == 1 for rows, each in made)
    assert max(rows for rows, _ in made) > 1


def test_ranks_agree_once_they_have_adopted_one_table() -> None:
    grid = Grid(Setting(INDEX_HEADS, 3, 64, 48), (Cell(2048, 1, 1.0, 2.0),))
    table = GateTable("cpu", (grid,))
    config = small_config(selection=SelectionConfig("hisa", 3), window_blocks=24)
    with Sidecar(config) as first, Sidecar(config) as second:
        first.adopt_gate_table(table, 1)
        second.adopt_gate_table(*first.gate_table())
        flat_calls = []
        for sidecar in (first, second):
            sequence = sidecar.open(300, 2)
            prefill(sidecar, sequence, 300, 1)
            sidecar.begin_step([(sequence, 1)], "decode")
            with pytest.raises(WrongState, match="cannot adopt a gate table while step"):
                sidecar.adopt_gate_table(None, 2)
            sidecar.abort_step()
            run_step(sidecar, [Rows(sequence, 1, 2)], "decode")
            flat_calls.append([group.selection.flat_calls for group in sidecar.stats().groups])
    assert flat_calls[0] == flat_calls[1]
    assert all(flat_calls[0])
