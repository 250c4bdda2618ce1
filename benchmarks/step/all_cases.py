"""Decode steps at 128K tokens: whole layers, and each stage of them, beside the peers' parts."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.ops.attention_cases import other_splits, split_name
from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.compare import check_equal
from benchmarks.ops.count import (
    append_rows_work,
    attention_work,
    selection_work,
    swap_in_work,
)
from benchmarks.ops.inputs import FP8_ROWS
from benchmarks.ops.peers import Peers
from benchmarks.ops.pinned import PinnedPool
from benchmarks.ops.timing import Timed
from benchmarks.ops.work import Work
from benchmarks.select.decode_cases import hisa_keys
from benchmarks.select.rows import BLOCK_TOKENS
from benchmarks.step import world
from benchmarks.step.peer_parts import DENSE, PARTS, SUM, PeerParts
from benchmarks.step.record import STAGES, OpCall
from benchmarks.step.world import World, Worlds
from hisparse_sidecar.config import Backend

BATCHES, PERCENTS, HEADS = (1, 8, 32, 64), (2, 10), (64, 128)
WHOLE = "whole"
_OVERLAPS = (4, 16, 32)
_BY_FLASH_MLA: Backend = "flash_mla"


@dataclass(frozen=True)
class Shape:
    """A step of one row of each of `batch` sequences, `percent` of whose rows miss.

    Attributes:
        split_keys: as the setting of that name; None = the default.
        backend: as the setting of that name; None = the suite's.
        overlap_rows: as the setting of that name.
    """

    batch: int
    percent: int
    heads: int
    split_keys: int | None = None
    backend: Backend | None = None
    overlap_rows: int = 0

    @property
    def name(self) -> str:
        """How its cases begin."""
        return f"step batch {self.batch}, {self.percent} % misses, L=128K, {self.heads} heads"

    @property
    def misses(self) -> int:
        """Of each row."""
        return world.TOPK * self.percent // 100


def all_cases(worlds: Worlds, peers: Peers, pool: PinnedPool) -> Iterator[Case]:
    """Batch after batch, for each has a world of its own; of a shape the whole step first.

    Whole steps are run with FlashMLA for attention, too, and without peers: in other splits of keys
    (with the fewest misses), and with rows that come in beside attention (with the most).
    """
    for batch in BATCHES:
        parts = PeerParts(peers, pool)
        for percent in PERCENTS:
            for heads in HEADS:
                shape = Shape(batch, percent, heads)
                yield Case(f"{shape.name}, {WHOLE}", partial(_whole, worlds, parts, shape))
                prepare = partial(_whole_by_flash_mla, worlds, peers, parts, shape)
                yield Case(f"{shape.name}, {WHOLE}, {_BY_FLASH_MLA}", prepare)
                for stage in STAGES:
                    prepare = partial(_stage, worlds, parts, shape, stage)
                    yield Case(f"{shape.name}, {stage}", prepare)
        for heads in HEADS:
            for split_keys in other_splits(heads, batch):
                shape = Shape(batch, PERCENTS[0], heads, split_keys)
                name = f"{shape.name}, {WHOLE}, {split_name(split_keys)}"
                yield Case(name, partial(_whole, worlds, parts, shape))
            for overlap_rows in (rows for rows in _OVERLAPS if rows < batch):
                shape = Shape(batch, PERCENTS[-1], heads, overlap_rows=overlap_rows)
                name = f"{shape.name}, {WHOLE}, {overlap_rows} rows beside others"
                yield Case(name, partial(_whole, worlds, parts, shape))


def _whole(worlds: Worlds, parts: PeerParts, shape: Shape) -> Prepared:
    one = worlds.of(shape.batch)
    one.set_up(
        shape.heads, shape.misses, shape.split_keys, shape.backend, overlap_rows=shape.overlap_rows
    )
    calls = [partial(one.run_layer, layer) for layer in one.layers]
    ours = Contender(one.check, Timed(calls, one.reset))
    if shape.split_keys is not None or shape.overlap_rows:
        return Prepared(_whole_work(shape), ours)
    peers: Mapping[str, Callable[[], Contender]] = {
        SUM: partial(parts.together, shape.batch, shape.misses, shape.heads),
        DENSE: partial(parts.dense, shape.batch, shape.heads),
    }
    return Prepared(_whole_work(shape), ours, peers)


def _whole_by_flash_mla(worlds: Worlds, peers: Peers, parts: PeerParts, shape: Shape) -> Prepared:
    """Beside the same peers; raises PeerAbsentError without FlashMLA."""
    peers.flash_mla()
    return _whole(worlds, parts, replace(shape, backend=_BY_FLASH_MLA))


def _stage(worlds: Worlds, parts: PeerParts, shape: Shape, stage: str) -> Prepared:
    """The recorded calls of one stage; those of the stages before have run when it begins."""
    one = worlds.of(shape.batch)
    one.set_up(shape.heads, shape.misses)
    layers = one.record()
    before, own = _up_to(layers, stage)

    def reset() -> None:
        one.reset()
        _run(before)

    calls = [partial(_run, some) for some in own]
    ours = Contender(partial(_check_replay, one, layers), Timed(calls, reset))
    peers: dict[str, Callable[[], Contender]] = {}
    if stage in PARTS:
        make = partial(parts.part, stage, shape.batch, shape.misses, shape.heads)
        peers[PARTS[stage]] = make
    return Prepared(_works(shape)[stage], ours, peers)


def _up_to(layers: list[list[OpCall]], stage: str) -> tuple[list[OpCall], list[list[OpCall]]]:
    """Calls of all layers before a stage, and of each layer the calls of the stage."""
    number = STAGES.index(stage)
    before = [call for calls in layers for call in calls if STAGES.index(call.stage) < number]
    return before, [[call for call in calls if call.stage == stage] for calls in layers]


def _run(calls: list[OpCall]) -> None:
    for call in calls:
        call.again()


def _check_replay(one: World, layers: list[list[OpCall]]) -> None:
    """The calls give again what they gave as parts of a layer, which `World.check` compares."""
    one.check()
    one.reset()
    for calls in layers:
        for call in calls:
            found = call.again()
            if call.name == "sparse_mla":
                assert isinstance(found, tuple)
                check_equal("out", found[0], call.result[0])


def _works(shape: Shape) -> dict[str, Work]:
    batch, topk = shape.batch, world.TOPK
    keys = hisa_keys(world.CONTEXT // BLOCK_TOKENS, world.KEPT)
    row_bytes = FP8_ROWS.row_bytes
    works = (
        append_rows_work(batch, row_bytes, world.INDEX_HEADS),
        selection_work(batch * keys, batch, world.INDEX_HEADS, batch * keys, topk),
        swap_in_work(batch * shape.misses, row_bytes, items=batch * topk),
        attention_work(batch, shape.heads, topk, batch * topk, FP8_ROWS),
    )
    return dict(zip(STAGES, works, strict=True))


def _whole_work(shape: Shape) -> Work:
    """What all stages must move; of the products those of attention, nearly all of them."""
    works = _works(shape)
    return Work(
        operations=works["attend"].operations,
        device_bytes=sum(work.device_bytes for work in works.values()),
        to_device_bytes=sum(work.to_device_bytes for work in works.values()),
        to_host_bytes=sum(work.to_host_bytes for work in works.values()),
        precision="bf16",
    )
