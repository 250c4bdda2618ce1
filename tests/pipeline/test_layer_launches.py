"""What one layer of a decode step launches: its ops, and nothing of torch's between them.

See `tests.launches` for what counts.
"""

import pytest
import torch

from hisparse_sidecar import Sidecar
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.side_stream import StreamMark
from tests.launches import Launches
from tests.pipeline.world import FLAT, Rows, pack_rows, prefill, random_rows, run_step, small_config

pytestmark = pytest.mark.cpu_only

HISA = SelectionConfig("hisa", num_kept_blocks=3, gate="off")
SELECTS = ["select_blocks", "select_tokens"]
MOVES = ["resolve", "swap_in", "sparse_mla"]
ANCHOR, SHARED = ["append_rows", *SELECTS, *MOVES], ["append_rows", *MOVES[1:]]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Of a sidecar that is made from now on; what only the CPU checks at the door is left out."""
    found = Launches()
    monkeypatch.setattr("hisparse_sidecar.tiers.tiers.choose_ops", lambda _: found.ops())
    monkeypatch.setattr("hisparse_sidecar.step.checks._check_finite", lambda *_: None)
    return found


def layers_of(
    sidecar: Sidecar, launches: Launches, rows: list[Rows], padded_rows: int
) -> list[list[str]]:
    """What each layer of a decode step launches."""
    config = sidecar.config
    padding = Rows(-1, padded_rows - sum(part.count for part in rows), 99)
    inputs = [
        pack_rows([random_rows(config, layer, part.count, part.seed) for part in [*rows, padding]])
        for layer in range(config.model.num_layers)
    ]
    members = [(part.sequence, part.count) for part in rows]
    sidecar.begin_step(members, "decode", padded_rows=padded_rows)
    found = []
    for layer, given in enumerate(inputs):
        launches.names.clear()
        with launches:
            sidecar.run_layer(layer, given)
        found.append(launches.names.copy())
    sidecar.commit_step()
    return found


@pytest.mark.parametrize(
    ("selection", "anchor"),
    [
        pytest.param(HISA, ANCHOR, id="hisa"),
        pytest.param(FLAT, ["append_rows", "paged_index_logits", "topk", *MOVES], id="flat"),
    ],
)
def test_a_layer_whose_keys_are_resident_launches_its_ops_alone(
    selection: SelectionConfig, anchor: list[str], launches: Launches
) -> None:
    config = small_config(selection=selection, window_blocks=16, max_step_rows=2, hot_slots=96)
    with Sidecar(config) as sidecar:
        one, other = sidecar.open(500, 8), sidecar.open(125, 8)
        prefill(sidecar, one, 500, 1)
        prefill(sidecar, other, 125, 2)
        run_step(sidecar, [Rows(one, 1, 3), Rows(other, 1, 4)], "decode")  # fills the windows
        # the second sequence ends a block, which launches nothing more
        found = layers_of(sidecar, launches, [Rows(one, 2, 5), Rows(other, 2, 6)], 7)
        sidecar.check_integrity()
    assert found == [anchor, SHARED, anchor]


def test_rows_come_in_and_are_attended_to_by_groups(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamMark, "wait", lambda _: launches.names.append("wait"))
    config = small_config(selection=HISA, window_blocks=16, overlap_rows=2)
    with Sidecar(config) as sidecar:
        rows = []
        for number in range(3):
            rows.append(Rows(sidecar.open(100 + number, 8), 1, 10 + number))
            prefill(sidecar, rows[-1].sequence, 100 + number, number)
        run_step(sidecar, rows, "decode")  # fills the windows
        found = layers_of(sidecar, launches, rows, 5)
    groups = ["swap_in"] * 3 + ["wait", "sparse_mla"] * 3
    anchor = ["append_rows", *SELECTS, "resolve", *groups]
    assert found == [anchor, ["append_rows", *groups], anchor]


def test_a_block_that_begins_is_given_a_slot_first(launches: Launches) -> None:
    with Sidecar(small_config(selection=HISA, window_blocks=16)) as sidecar:
        sequence = sidecar.open(127, 4)
        prefill(sidecar, sequence, 127, 1)
        run_step(sidecar, [Rows(sequence, 1, 2)], "decode")
        begins = layers_of(sidecar, launches, [Rows(sequence, 1, 3)], 1)
        goes_on = layers_of(sidecar, launches, [Rows(sequence, 1, 4)], 1)
        sidecar.check_integrity()
    opened = ["resolve", "swap_in_blocks", *ANCHOR]
    assert begins == [opened, SHARED, opened]
    assert goes_on == [ANCHOR, SHARED, ANCHOR]


def test_a_prefix_that_is_taken_whole_is_not_scored(launches: Launches) -> None:
    with Sidecar(small_config(selection=HISA, window_blocks=16)) as sidecar:
        sequence = sidecar.open(20, 4)
        prefill(sidecar, sequence, 20, 1)
        found = layers_of(sidecar, launches, [Rows(sequence, 1, 3)], 1)
    # the window was never asked for, so nobody knows that it holds the block
    anchor = ["resolve", "swap_in_blocks", "append_rows", "prefix_positions", *MOVES]
    assert found == [anchor, SHARED, anchor]


def test_calls_of_torch_are_noticed(launches: Launches) -> None:
    tensor = torch.ones(2, 3)
    with launches:
        _ = tensor[0], tensor.view(6), tensor.new_empty(3), torch.empty(4), tensor.t()
        _ = tensor + 1, tensor.int(), tensor.fill_(2.0), torch.zeros(2), tensor[:, 0].contiguous()
    names = ["add", "_to_copy", "fill_", "zeros", "clone"]
    assert launches.names == [f"aten::{name}" for name in names]
