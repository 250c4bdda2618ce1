"""Index keys on the host behind an engine's pages: lists are those of keys that never left."""

from typing import Any

import pytest
import torch

from hisparse_sidecar.backends import ops_of
from hisparse_sidecar.engine_rows import EngineRowTier
from hisparse_sidecar.errors import DeviceArenaFull, HisparseError, InvalidArgument, WrongState
from hisparse_sidecar.selection import SelectionQuery
from hisparse_sidecar.selection.flat import FlatSelector
from tests.launches import Launches
from tests.no_waiting import no_waiting
from tests.pipeline import world
from tests.pipeline.engine_index_world import (
    CONFIG,
    FIRST_PAGE,
    PAGE,
    SELECTIONS,
    SHIFT,
    TOPK,
    WINDOW,
    IndexEngine,
    config_with,
)


@pytest.fixture
def engine() -> IndexEngine:
    return IndexEngine()


@pytest.mark.parametrize("name", SELECTIONS)
def test_lists_are_those_of_keys_that_never_left(name: str, engine: IndexEngine) -> None:
    first, second = engine.open(900), engine.open(130)
    for _ in range(4):
        engine.step([first, second], name, padding=1)
    third = engine.open(64)
    for _ in range(3):
        engine.step([third, first, second], name)
    engine.tier.check_integrity()


@pytest.mark.interpreted
def test_kernels_give_the_same_lists(engine: IndexEngine) -> None:
    first, second = engine.open(300), engine.open(127)
    for _ in range(2):
        engine.step([first, second], "adaptive", padding=1)
    if world.Place("cuda", "reference") != world.PLACE:  # torch sums in no fixed order there
        engine.tier.check_integrity()


@pytest.mark.cpu_only
def test_tables_of_a_step_are_one_transfer_and_a_copy_of_each_kind_of_pages(
    engine: IndexEngine,
) -> None:
    first, second = engine.open(900), engine.open(130)
    engine.tier.append([first, second])
    launches = Launches()

    with launches:
        engine.tier.load_step()

    assert launches.names == ["aten::copy_"] * 3


def test_pages_begin_and_sequences_come_and_go(engine: IndexEngine) -> None:
    first, second = engine.open(700), engine.open(127, 400)
    for _ in range(70):
        engine.step([second, first])
    engine.tier.check_integrity()
    engine.tier.close_sequence(second)
    third = engine.open(128)
    for step in range(66):
        engine.step([first, third] if step % 3 else [third])
    engine.tier.check_integrity()
    engine.tier.close_sequence(first)
    engine.tier.close_sequence(third)
    stats = engine.tier.stats()
    assert (stats.window_slots_used, stats.pooled_keys_used, stats.table_blocks_used) == (0, 0, 0)


def test_what_was_kept_is_found_in_the_window(engine: IndexEngine) -> None:
    sequence = engine.open(900)
    engine.plan([sequence])
    keys, query = engine.new_keys([sequence], 1), engine.queries(1)
    engine.layer(0, keys, query, "hisa")
    assert int(engine.index._plan.miss_count[0]) == 3  # the fourth is the open page
    state = engine.index.windows.of_group[0]
    held = state.slot_item[FIRST_PAGE:]
    assert int((held >= 0).sum()) == 4
    engine.plan([sequence])
    engine.layer(0, engine.new_keys([sequence], 1), query, "hisa")
    assert int(engine.index._plan.miss_count[0]) == 0


def test_the_open_page_keeps_its_slot_whatever_is_asked_for(engine: IndexEngine) -> None:
    sequence = engine.open(900)
    page = engine.index.windows.open_page(engine.tier._manager.ranges(sequence))
    for first in (0, 4, 8):
        engine.plan([sequence])
        engine.append(0, engine.new_keys([sequence], 1))
        keys = engine.index._keys(0, 1, 15)
        seq = torch.zeros(1, dtype=torch.int32, device=engine.device)
        others = torch.arange(first, first + WINDOW - 1, dtype=torch.int32, device=engine.device)
        query = SelectionQuery(*engine.queries(1), seq, seq, TOPK)
        assert (keys._fetched(query, others[None]) >= FIRST_PAGE).all()
        assert int(engine.index.windows.of_group[0].slot_item[page]) == 14


def test_short_sequences_take_few_pages(engine: IndexEngine) -> None:
    engine.open(60, 4), engine.open(150, 40)
    assert engine.tier.stats().window_slots_used == 3 + 4


def test_a_full_sequence_leaves_its_neighbours_table_alone(engine: IndexEngine) -> None:
    full = engine.tier.open(PAGE, 0)
    neighbour = engine.open(130)
    engine.step([neighbour])
    rows = torch.arange(PAGE, 2 * PAGE, device=engine.device)
    engine.write(rows, engine.some_keys(PAGE))
    engine.tier.take_prompt(full, rows + SHIFT)
    engine.tier.check_integrity()
    engine.step([neighbour])


def test_a_new_sequence_finds_nothing_of_an_earlier_one(engine: IndexEngine) -> None:
    first = engine.open(900)
    engine.step([first])
    engine.tier.close_sequence(first)
    second = engine.open(330, 800)
    engine.tier.check_integrity()
    for _ in range(3):
        engine.step([second])
    engine.tier.check_integrity()


def test_a_pass_that_no_step_was_planned_for_touches_nothing(engine: IndexEngine) -> None:
    sequence = engine.open(200)
    engine.step([sequence])
    engine.num_real.fill_(0)
    before = [pages[1:].clone() for pages in engine.index.pages]
    for group in range(2):
        found = engine.layer(group, engine.some_keys(3), engine.queries(3), "hisa")
        assert (found == -1).all()
        asked = engine.queries(3)
        short = engine.index.select(group, FlatSelector(), *asked, 2 * PAGE, 2)
        assert (short == -1).all()
    for pages, held in zip(engine.index.pages, before, strict=True):
        assert torch.equal(pages[1:], held)
    engine.step([sequence])
    engine.tier.check_integrity()


def test_a_pass_after_the_steps_own_touches_nothing(engine: IndexEngine) -> None:
    """As of an idle rank, or captured later, whose rows the engine takes for real ones."""
    sequence = engine.open(200)
    engine.step([sequence])
    nothing = torch.full((1, TOPK), -1, dtype=torch.int32, device=engine.device)
    for layer in range(len(CONFIG.groups)):
        engine.tier.swap_in(layer, nothing, engine.num_real)
    for group in range(2):
        found = engine.layer(group, engine.some_keys(1), engine.queries(1), "hisa")
        assert (found == -1).all()
    engine.tier.check_integrity()
    engine.step([sequence])
    engine.tier.check_integrity()


def test_windows_run_out_with_a_typed_error() -> None:
    engine = IndexEngine(config_with(num_pages=2 * (WINDOW + 1)))
    engine.open(500), engine.open(500)
    with pytest.raises(DeviceArenaFull, match="window"):
        engine.tier.open(500, 1)


def test_scans_of_every_key_are_refused(engine: IndexEngine) -> None:
    sequence = engine.open(500)
    engine.plan([sequence])
    keys = engine.index._keys(0, 1, 9)
    lists = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    query = SelectionQuery(*engine.queries(1), *lists, TOPK)
    with pytest.raises(WrongState, match=f"for {TOPK} tokens, needs a selection by pages"):
        keys.best_of_all(query, TOPK)
    with pytest.raises(WrongState, match="of 5 positions, needs a selection by pages"):
        keys.position_logits(query, torch.zeros(1, 5, dtype=torch.int32))


def test_what_differs_from_the_host_is_found(engine: IndexEngine) -> None:
    sequence = engine.open(200)
    engine.step([sequence])
    engine.tier.check_integrity()
    index, ranges = engine.index, engine.tier._manager.ranges(sequence)
    page = index.windows.open_page(ranges)

    def broken(place: torch.Tensor, match: str) -> None:
        held = place.clone()
        place += 1
        with pytest.raises(HisparseError, match=match):
            engine.tier.check_integrity()
        place.copy_(held)
        engine.tier.check_integrity()

    group = f"sequence {sequence}, group 1: "
    broken(index.pages[1][page, :1], group + "index row 192 differs from the host's")
    broken(index.pooled_pages[1][ranges.pooled_base // PAGE, :1], "pooled key of page 0 is another")
    broken(index.open_sums[1][ranges.state_row, 5:6], "open page's sum is another")
    broken(index.windows.of_group[1].slot_item[page : page + 1], "window slot")


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"first_page": 0}, "first_page is 0, must be >= 1"),
        ({"window_pages": 1}, "window_pages is 1, must be >= 2"),
        ({"num_pages": WINDOW}, f"windows have {WINDOW} pages, one needs {WINDOW + 1}"),
        ({"row_shift": -1}, "row_shift is -1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changed: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        config_with(**changed)


@pytest.mark.cpu_only
def test_index_pages_that_do_not_fit_are_refused(engine: IndexEngine) -> None:
    ops, short = ops_of("reference", "cpu"), [pages[:9] for pages in engine.pages]
    with pytest.raises(InvalidArgument, match=r"index pages are \(9, 8448\).*needs \(54 or more"):
        EngineRowTier(CONFIG, engine.memory, ops, short)


@pytest.mark.gpu
def test_a_graph_of_a_whole_step_is_replayed(engine: IndexEngine) -> None:
    """Captured before there is a sequence, with padding, as engines do it."""
    groups = range(len(engine.index.pages))
    keys = engine.some_keys(3)
    asked = [engine.queries(3) for _ in groups]
    found = [torch.zeros(3, TOPK, dtype=torch.int32, device=engine.device) for _ in groups]

    def layers() -> None:
        for group in groups:
            found[group].copy_(engine.layer(group, keys, asked[group], "adaptive"))

    engine.num_real.fill_(3)
    layers()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layers()
    first, second = engine.open(900), engine.open(126)
    for step in range(12):
        sequences = [first, second] if step % 3 else [second]
        engine.plan(sequences)
        keys.copy_(engine.new_keys(sequences, 3))
        for place, made in zip(asked, [engine.queries(3) for _ in groups], strict=True):
            for target, given in zip(place, made, strict=True):
                target.copy_(given)
        graph.replay()
        for group in groups:
            engine.check(sequences, group, asked[group], found[group], "adaptive")
    engine.tier.check_integrity()


@pytest.mark.gpu
def test_a_layer_does_not_wait(engine: IndexEngine) -> None:
    sequences = [engine.open(500), engine.open(200)]
    engine.step(sequences)
    engine.plan(sequences)
    keys, query = engine.new_keys(sequences, 2), engine.queries(2)
    torch.cuda.synchronize()
    with no_waiting():
        for group in range(2):
            engine.layer(group, keys, query, "hisa")
