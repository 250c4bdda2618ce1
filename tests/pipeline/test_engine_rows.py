"""Rows in an engine's memory: what was selected is there, byte for byte; in a graph, too."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from hisparse_sidecar.backends import find_device, ops_of
from hisparse_sidecar.engine_rows import EngineRowsConfig, EngineRowTier
from hisparse_sidecar.errors import (
    DeviceArenaFull,
    HisparseError,
    HostPoolFull,
    InvalidArgument,
    WrongState,
)
from tests.far_apart import keep_far_apart
from tests.launches import Launches
from tests.no_waiting import no_waiting
from tests.pipeline import world

TOPK, HOT, SEQUENCES, FIRST_ROW = 16, 48, 3, 64
CONFIG = EngineRowsConfig(
    groups=(0, 0, 1),
    row_bytes=656,
    topk=TOPK,
    host_pages=20,
    max_sequences=SEQUENCES,
    max_tokens=600,
    hot_slots=HOT,
    first_row=FIRST_ROW,
    num_rows=SEQUENCES * (HOT + 1),
)
PROMPT_ROW = FIRST_ROW + CONFIG.num_rows


class Engine:
    """Memory of an engine, its sequences' rows, and the tier over it."""

    def __init__(self, config: EngineRowsConfig = CONFIG) -> None:
        self.device = find_device(world.PLACE.device)
        layers, total = len(config.groups), PROMPT_ROW + 512
        self.random = torch.Generator().manual_seed(1)
        self.memory = [self.some_rows(total) for _ in range(layers)]
        ops = ops_of(world.PLACE.backend, world.PLACE.device)
        self.tier = EngineRowTier(config, self.memory, ops)
        self.rows: dict[int, torch.Tensor] = {}
        self.num_real = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.counts = [[0, 0, 0], [0, 0, 0]]
        self.fetches_ahead = False

    def some_rows(self, *shape: int) -> torch.Tensor:
        """Random rows on the engine's device."""
        size = *shape, CONFIG.row_bytes
        made = torch.randint(256, size, dtype=torch.uint8, generator=self.random)
        return made.to(self.device)

    def open(self, tokens: int, new_tokens: int = 40) -> int:
        """A sequence whose prompt lay in rows that are in no order, and are the engine's again."""
        sequence = self.tier.open(tokens, new_tokens)
        at = (torch.randperm(512, generator=self.random)[:tokens] + PROMPT_ROW).to(self.device)
        self.tier.take_prompt(sequence, at)
        self.rows[sequence] = torch.stack([layer[at] for layer in self.memory])
        for layer in self.memory:
            layer[at] = 0
        return sequence

    def lists(self, sequences: Sequence[int], padding: int = 0) -> list[torch.Tensor]:
        """For each layer [rows, TOPK] int32: positions at random, the step's own among them."""
        found = []
        for group in (0, 1):
            made = torch.full((len(sequences) + padding, TOPK), -1, dtype=torch.int32)
            for row, sequence in enumerate(sequences):
                length = self.tier.length(sequence)
                order = torch.randperm(length - 1, generator=self.random)[: TOPK - 1 - group]
                made[row, : len(order)] = order.int()
                made[row, len(order)] = length - 1
            found.append(made.to(self.device))
        return [found[0], found[0], found[1]]

    def new_rows(self, sequences: Sequence[int]) -> torch.Tensor:
        """[layers, sequences, row_bytes], appended to what the sequences should have."""
        made = self.some_rows(len(CONFIG.groups), len(sequences))
        for row, sequence in enumerate(sequences):
            self.rows[sequence] = torch.cat([self.rows[sequence], made[:, row : row + 1]], dim=1)
        return made

    def step(self, sequences: Sequence[int], padding: int = 0) -> None:
        """A decode step, looked at in every layer; every other one fetches ahead."""
        self.tier.append(sequences)
        self.tier.load_step()
        self.num_real.fill_(len(sequences))
        new, at = self.new_rows(sequences), self.tier.new_rows[: len(sequences)].long()
        for layer, items in enumerate(self.lists(sequences, padding)):
            if layer in CONFIG.anchors:
                self.count(sequences, CONFIG.groups[layer], items)
                if self.fetches_ahead:
                    self.tier.fetch(layer, items, self.num_real)
            self.memory[layer][at] = new[layer]
            slots = self.tier.swap_in(layer, items, self.num_real)
            self.check(sequences, layer, items, slots)
        self.fetches_ahead = not self.fetches_ahead

    def count(self, sequences: Sequence[int], group: int, items: torch.Tensor) -> None:
        """Adds what a step's lists ask for, and what of it is not in the tables, to `counts`."""
        for row, sequence in enumerate(sequences):
            wanted = items[row][items[row] >= 0].unique().long()
            own = wanted == self.tier.length(sequence) - 1
            base = self.tier._manager.ranges(sequence).token_table_base
            missed = self.tier._hot.of_group[group].slot_table[base + wanted] < 0
            self.counts[group][0] += len(wanted)
            self.counts[group][1] += int((missed & ~own).sum())

    def found_counts(self) -> list[list[int]]:
        """As `counts`, of the tier."""
        return [[one.items, one.misses, one.refused] for one in self.tier.counters.read()]

    def check(
        self, sequences: Sequence[int], layer: int, items: torch.Tensor, slots: torch.Tensor
    ) -> None:
        """Every selected row is the sequence's; nothing is where nothing was selected."""
        assert ((slots >= 0) == (items >= 0)).all()
        for row, sequence in enumerate(sequences):
            some = items[row] >= 0
            wanted = self.rows[sequence][layer][items[row][some].long()]
            assert torch.equal(self.memory[layer][slots[row][some].long()], wanted)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.mark.interpreted
def test_selected_rows_are_found_whatever_is_hot(engine: Engine) -> None:
    first, second = engine.open(300), engine.open(7)
    for _ in range(5):
        engine.step([first, second], padding=1)
    third = engine.open(64)
    for _ in range(4):
        engine.step([third, second, first])
    engine.tier.check_integrity()
    engine.tier.close_sequence(second)
    engine.step([first])
    engine.tier.check_integrity()
    assert engine.found_counts() == engine.counts
    assert min(misses for _, misses, _ in engine.counts) > 0
    engine.tier.close()


def test_a_list_that_was_not_fetched_ahead_is_fetched_then(engine: Engine) -> None:
    first = engine.open(300)
    engine.step([first])
    engine.tier.append([first])
    engine.tier.load_step()
    new, at = engine.new_rows([first]), engine.tier.new_rows[:1].long()
    (guessed, *_), wanted = engine.lists([first]), engine.lists([first])
    engine.tier.fetch(0, guessed, engine.num_real)
    for layer, items in enumerate(wanted):
        engine.memory[layer][at] = new[layer]
        engine.check([first], layer, items, engine.tier.swap_in(layer, items, engine.num_real))
    engine.tier.check_integrity()


def test_what_one_step_has_begun_is_no_other_steps(engine: Engine) -> None:
    first = engine.open(300)
    engine.step([first])
    engine.tier.append([first])
    engine.tier.load_step()
    items, *_ = engine.lists([first])
    engine.tier.fetch(0, items, engine.num_real)  # and the pass ends
    engine.new_rows([first])
    engine.tier.append([first])
    engine.tier.load_step()
    new, at = engine.new_rows([first]), engine.tier.new_rows[:1].long()
    other = engine.lists([first])
    items.copy_(other[0])  # at the same place
    for layer, wanted in enumerate([items, items, other[2]]):
        engine.memory[layer][at] = new[layer]
        slots = engine.tier.swap_in(layer, wanted, engine.num_real)
        assert engine.tier.length(first) - 1 in wanted
        kept = (wanted >= 0) & (wanted != engine.tier.length(first) - 2)  # whose rows never came
        found, rows = engine.memory[layer][slots[kept].long()], engine.rows[first][layer]
        assert torch.equal(found, rows[wanted[kept].long()])


@pytest.mark.cpu_only
def test_tables_of_a_step_are_one_transfer_and_a_copy_of_their_pages(engine: Engine) -> None:
    first, second = engine.open(300), engine.open(7)
    engine.tier.append([first, second])
    launches = Launches()

    with launches:
        engine.tier.load_step()

    assert launches.names == ["aten::copy_", "aten::copy_"]


@pytest.mark.interpreted
def test_a_reading_is_of_the_steps_before_it(engine: Engine) -> None:
    first = engine.open(300)
    engine.step([first], padding=2)
    reading = engine.tier.counters.begin_reading()
    read = engine.tier.counters.read()
    engine.step([first])
    assert reading.is_ready
    assert reading.counts() == read
    assert reading.counts() != engine.tier.counters.read()


def test_a_step_that_finds_no_slots_is_counted_apart(engine: Engine) -> None:
    misses, items = engine.tier.counters.of_plan(1, 3)
    misses.copy_(torch.tensor([-1, 5, -1]))  # as a GPU leaves what it refuses
    items.copy_(torch.tensor([0, 9, 0]))
    engine.tier.counters.num_fresh(1, 3).copy_(torch.tensor([0, 1, 0]))
    engine.tier.counters.add()
    assert engine.found_counts() == [[0, 0, 0], [9, 4, 2]]


def test_a_new_sequence_finds_nothing_of_an_earlier_one(engine: Engine) -> None:
    first = engine.open(300, 100)
    for _ in range(3):
        engine.step([first])
    engine.tier.close_sequence(first)
    second = engine.open(20, 380)
    engine.tier.check_integrity()
    for _ in range(3):
        engine.step([second])
    engine.tier.check_integrity()


def test_a_pass_that_no_step_was_planned_for_touches_nothing(engine: Engine) -> None:
    """As of an idle rank, or captured later, whose rows the engine takes for real ones."""
    first = engine.open(63)
    engine.step([first])
    engine.tier.close_sequence(first)
    engine.open(64)  # in the same page of the host
    nothing = torch.full((2, TOPK), -1, dtype=torch.int32, device=engine.device)
    for layer in range(len(CONFIG.groups)):
        engine.memory[layer][engine.tier.new_rows[:2].long()] = 9
        assert (engine.tier.swap_in(layer, nothing, engine.num_real) == -1).all()
    engine.tier.check_integrity()


def test_a_sequence_is_admitted_for_all_its_tokens_or_not_at_all(engine: Engine) -> None:
    first = engine.open(500, 100)
    assert engine.tier.stats().host_pages_free == 10
    second = engine.open(10, 300)
    with pytest.raises(HostPoolFull, match=r"6\D+5"):
        engine.tier.open(321, 0)
    assert engine.tier.stats().host_pages_free == 5
    with pytest.raises(InvalidArgument, match="601 tokens wanted, max_tokens is 600"):
        engine.tier.open(600, 1)
    engine.tier.close_sequence(first)
    engine.tier.close_sequence(second)
    assert engine.tier.stats().host_pages_free == 20
    engine.tier.check_integrity()


def test_short_sequences_take_no_more_slots_than_tokens(engine: Engine) -> None:
    engine.open(5, 5)
    assert engine.tier.stats().slots_used == 10


def test_hot_buffers_run_out_with_a_typed_error() -> None:
    engine = Engine(replace(CONFIG, num_rows=SEQUENCES + 2 * HOT))
    engine.open(60), engine.open(60)
    with pytest.raises(DeviceArenaFull, match="slots"):
        engine.tier.open(60, 1)


def test_a_step_needs_sequences_that_have_room(engine: Engine) -> None:
    short = engine.open(4, 1)
    engine.step([short])
    with pytest.raises(InvalidArgument, match="6"):
        engine.tier.append([short])
    assert engine.tier.length(short) == 5
    with pytest.raises(InvalidArgument, match="0 sequences in a step, needs 1 to 3"):
        engine.tier.append([])
    engine.tier.check_integrity()


def test_a_row_that_differs_from_the_hosts_is_found(engine: Engine) -> None:
    engine.open(30)
    engine.tier.check_integrity()
    engine.memory[2][CONFIG.hot_row + 3] ^= 1
    with pytest.raises(HisparseError, match="row 3 of layer 2 differs from the host's"):
        engine.tier.check_integrity()


def test_a_host_tensor_that_is_held_keeps_the_tier_open(engine: Engine) -> None:
    held = engine.tier._host.kv_rows[0]
    with pytest.raises(WrongState):
        engine.tier.close()
    del held
    engine.tier.close()


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"hot_slots": 15}, "hot_slots is 15, topk needs 16"),
        ({"num_rows": 50}, "num_rows is 50, a step and one hot buffer need 51"),
        ({"host_pages": 9}, "the host pool has 576 tokens, a sequence of max_tokens 600"),
        ({"groups": (0, 2, 2)}, "layer 1 has group 2, layers of a group lie together"),
        ({"first_row": -1}, "first_row is -1"),
        ({"row_bytes": 0}, "row_bytes is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changed: dict[str, int], match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        replace(CONFIG, **changed)  # type: ignore[arg-type]


@pytest.mark.cpu_only
def test_memory_that_does_not_fit_is_refused(engine: Engine) -> None:
    ops = ops_of("reference", "cpu")
    with pytest.raises(InvalidArgument, match="rows of 2 layers, the configuration has 3"):
        EngineRowTier(CONFIG, engine.memory[:2], ops)
    short = [layer[: PROMPT_ROW - 1] for layer in engine.memory]
    with pytest.raises(InvalidArgument, match=rf"rows are \(210, 656\).*needs \({PROMPT_ROW}"):
        EngineRowTier(CONFIG, short, ops)


@pytest.mark.gpu
def test_a_layer_neither_allocates_nor_waits(engine: Engine) -> None:
    sequences = [engine.open(300), engine.open(200)]
    engine.step(sequences)
    engine.tier.append(sequences)
    engine.tier.load_step()
    lists = engine.lists(sequences)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    with no_waiting():
        for layer, items in enumerate(lists):
            if layer in CONFIG.anchors:
                engine.tier.fetch(layer, items, engine.num_real)
            engine.tier.swap_in(layer, items, engine.num_real)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.fixture(params=["beside", "engine"])
def far_apart(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fetched, or what the engine does, is slow."""
    keep_far_apart(monkeypatch, request.param)


@pytest.mark.gpu
def test_rows_are_there_however_far_one_stream_is_behind_the_other(
    engine: Engine, far_apart: None
) -> None:
    sequences, read = [engine.open(300), engine.open(200)], []
    for _ in range(6):
        engine.tier.append(sequences)
        engine.tier.load_step()
        engine.num_real.fill_(2)
        new, at = engine.new_rows(sequences), engine.tier.new_rows[:2].long()
        for layer, items in enumerate(engine.lists(sequences)):
            if layer in CONFIG.anchors:
                engine.tier.fetch(layer, items, engine.num_real)
            engine.memory[layer][at] = new[layer]
            slots = engine.tier.swap_in(layer, items, engine.num_real)
            read.append((layer, items, engine.memory[layer][slots.clamp(min=0).long()]))
    for layer, items, found in read:
        for row, sequence in enumerate(sequences):
            some = items[row] >= 0
            wanted = engine.rows[sequence][layer][items[row][some].long()]
            assert torch.equal(found[row][some], wanted)


@pytest.mark.gpu
def test_a_step_waits_for_what_a_pass_that_ended_early_has_begun(engine: Engine) -> None:
    first = engine.open(300)
    engine.tier.append([first])
    engine.tier.load_step()
    items, *_ = engine.lists([first])
    with engine.tier.fetches._side.beside():
        torch.cuda._sleep(100_000_000)
    engine.tier.fetch(0, items, engine.num_real)
    begun = engine.tier.fetches._side.mark()
    engine.tier.append([first])

    engine.tier.load_step()

    torch.cuda.current_stream().synchronize()
    assert begun.has_passed


@pytest.mark.gpu
def test_a_graph_of_a_whole_step_is_replayed(engine: Engine) -> None:
    """Captured before there is a sequence, with padding, as engines do it."""
    items = [torch.zeros(3, TOPK, dtype=torch.int32, device=engine.device) for _ in range(3)]
    new = engine.some_rows(3, 3)
    at = engine.tier.new_rows.long()
    slots = [torch.zeros_like(one) for one in items]

    def layers() -> None:
        for layer, memory in enumerate(engine.memory):
            if layer in CONFIG.anchors:
                engine.tier.fetch(layer, items[layer], engine.num_real)
            memory[at] = new[layer]
            slots[layer].copy_(engine.tier.swap_in(layer, items[layer], engine.num_real))

    engine.num_real.fill_(3)
    layers()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layers()
    first, second = engine.open(300), engine.open(200)
    for step in range(12):
        sequences = [first, second] if step % 3 else [second]
        engine.tier.append(sequences)
        engine.tier.load_step()
        engine.num_real.fill_(len(sequences))
        new[:, : len(sequences)] = engine.new_rows(sequences)
        for target, made in zip(items, engine.lists(sequences, 3 - len(sequences)), strict=True):
            target.copy_(made)
        for group, of_layer in enumerate((0, 2)):
            engine.count(sequences, group, items[of_layer])
        graph.replay()
        for layer in range(3):
            engine.check(sequences, layer, items[layer], slots[layer])
    engine.tier.check_integrity()
    assert engine.found_counts() == engine.counts
