"""The suite `step`, small and with the reference backend: its cases' checks pass, and can fail."""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.ops import attention_cases, hot_buffers, swap_cases
from benchmarks.ops.case import PeerAbsentError, Prepared
from benchmarks.ops.compare import WrongResultError
from benchmarks.select import decode_cases
from benchmarks.step import all_cases, world
from benchmarks.step.all_cases import WHOLE, Shape
from benchmarks.step.peer_parts import DENSE, PARTS, SUM, PeerParts
from benchmarks.step.plot import REST, UNDIVIDED, Bar, plot_stages, read_bars
from benchmarks.step.record import STAGES
from benchmarks.step.world import World, Worlds
from hisparse_kernels.backends import Ops, reference_ops
from hisparse_kernels.gpu.interpreter import interpreting
from hisparse_sidecar import SidecarConfig
from hisparse_sidecar.cli.bench.rows import Environment, Measurement, Row, make_row
from tests.benchmarks.stand_ins import CudaIsCpu, HostPool, LruPeers, NoPeers, StandInPeers

ENVIRONMENT = Environment("NVIDIA H100", "580", "2.11.0", "3.6.0", "abc1234")
SHAPE = Shape(2, 10, 64)
SIZES = {
    world: {"CONTEXT": 1024, "TOPK": 64, "KEPT": 4, "INDEX_HEADS": 16},
    hot_buffers: {"TOPK": 64, "HOT_SLOTS": 128},
    swap_cases: {"TOPK": 64, "HOT_SLOTS": 128, "_CONTEXT": 1024, "_STEPS": 3},
    attention_cases: {"_TOPK": 512, "_CONTEXT": 2048},
}


def shrink(patch: pytest.MonkeyPatch) -> None:
    for module, sizes in SIZES.items():
        for name, size in sizes.items():
            patch.setattr(module, name, size)
    for name, value in (("_MOST_LAYERS", 2), ("_DEVICE", "cpu"), ("_BACKEND", "reference")):
        patch.setattr(world, name, value)
    for module in (attention_cases, decode_cases):
        patch.setattr(module, "num_sets", lambda bytes_each: 2)


@pytest.fixture(scope="module")
def small() -> Iterator[Worlds]:
    """One world for all tests: its prompt takes a while."""
    if not interpreting():
        pytest.skip("Triton compiles here: the suite itself checks its cases")
    with pytest.MonkeyPatch.context() as patch, CudaIsCpu():
        shrink(patch)
        torch.manual_seed(0)
        worlds = Worlds()
        worlds.of(SHAPE.batch)
        yield worlds
        worlds.close()


def whole(worlds: Worlds, peers: object = None) -> Prepared:
    parts = PeerParts(peers or StandInPeers(), HostPool())  # type: ignore[arg-type]
    return all_cases._whole(worlds, parts, SHAPE)


def stage(worlds: Worlds, name: str, peers: object = None) -> Prepared:
    parts = PeerParts(peers or StandInPeers(), HostPool())  # type: ignore[arg-type]
    return all_cases._stage(worlds, parts, SHAPE, name)


def test_a_whole_step_and_its_peers_pass_the_checks(small: Worlds) -> None:
    prepared = whole(small)
    prepared.ours.check()
    assert set(prepared.peers) == {SUM, DENSE}
    for make in prepared.peers.values():
        make().check()
    assert len(prepared.peers[SUM]().also) == len(PARTS) - 1


def test_a_step_can_be_run_again_and_gives_the_same_bits(small: Worlds) -> None:
    timed = whole(small).ours.timed
    assert timed.reset is not None
    runs = []
    for _ in range(3):
        timed.reset()
        runs.append([call() for call in timed.calls])
    for again in runs[1:]:
        for one, other in zip(runs[0], again, strict=True):
            for name in ("out", "lse", "topk_indices"):
                assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_replays_what_the_step_did(small: Worlds, name: str) -> None:
    prepared = stage(small, name)
    prepared.ours.check()
    for make in prepared.peers.values():
        make().check()
    assert list(prepared.peers) == [peer for of, peer in PARTS.items() if of == name]
    timed = prepared.ours.timed
    assert timed.reset is not None
    timed.reset()
    for call in timed.calls:
        call()


@pytest.mark.parametrize(("setting", "split_keys"), [(None, 256), (128, 128), (0, 64)])
def test_a_step_attends_in_the_splits_of_its_case(
    small: Worlds, setting: int | None, split_keys: int
) -> None:
    shape = replace(SHAPE, split_keys=setting)
    parts = PeerParts(StandInPeers(), HostPool())  # type: ignore[arg-type]
    prepared = all_cases._whole(small, parts, shape)
    prepared.ours.check()
    assert bool(prepared.peers) == (setting is None)
    for calls in small.of(SHAPE.batch).record():
        attend = calls[-1].again
        assert isinstance(attend, partial)
        assert attend.args[-1].split_keys == split_keys


def test_a_step_by_flash_mla_has_the_ops_of_that_backend_and_the_same_peers(
    small: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends: list[str] = []

    def choose(config: SidecarConfig) -> Ops:
        backends.append(config.backend)
        return reference_ops()

    monkeypatch.setattr(world, "choose_ops", choose)
    peers = StandInPeers()
    parts = PeerParts(peers, HostPool())  # type: ignore[arg-type]
    prepared = all_cases._whole_by_flash_mla(small, peers, parts, SHAPE)  # type: ignore[arg-type]
    prepared.ours.check()
    assert set(prepared.peers) == {SUM, DENSE}
    for calls in small.of(SHAPE.batch).record():
        attend = calls[-1].again
        assert isinstance(attend, partial)
        assert attend.args[-1].split_keys is None
    whole(small)
    assert backends == ["flash_mla", "reference"]


def test_without_flash_mla_no_step_is_run_by_it(small: Worlds) -> None:
    parts = PeerParts(NoPeers(), HostPool())  # type: ignore[arg-type]
    with pytest.raises(PeerAbsentError):
        all_cases._whole_by_flash_mla(small, NoPeers(), parts, SHAPE)  # type: ignore[arg-type]


def test_every_op_of_a_layer_belongs_to_the_stage_that_called_it(small: Worlds) -> None:
    one = small.of(SHAPE.batch)
    one.set_up(SHAPE.heads, SHAPE.misses)
    for calls in one.record():
        found = {name: [call.name for call in calls if call.stage == name] for name in STAGES}
        assert found == {
            "append": ["append_rows"],
            "select": ["select_blocks", "select_tokens"],
            "resolve + swap_in": ["resolve", "swap_in"],
            "attend": ["sparse_mla"],
        }


def test_another_number_of_misses_does_not_pass(
    small: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = small.of(SHAPE.batch)
    one.set_up(SHAPE.heads, SHAPE.misses)
    monkeypatch.setattr(one, "_misses", SHAPE.misses + 1)
    with pytest.raises(WrongResultError, match="misses"):
        one.check()


def test_rows_that_are_not_the_hosts_do_not_pass(small: Worlds) -> None:
    one: World = small.of(SHAPE.batch)
    one.set_up(SHAPE.heads, SHAPE.misses)
    for rows in one._tiers.device.hot_rows:
        rows[:, :100] = 0
    with pytest.raises(WrongResultError, match="out"):
        one.check()


@pytest.mark.parametrize("peer", [SUM, DENSE])
def test_a_peer_with_wrong_results_does_not_pass(small: Worlds, peer: str) -> None:
    prepared = whole(small, StandInPeers(spoil=torch.zeros_like))
    prepared.ours.check()
    contender = prepared.peers[peer]()
    with pytest.raises(WrongResultError):
        contender.check()


@pytest.mark.parametrize("peer", [SUM, DENSE])
def test_a_peer_that_did_not_load_is_absent(small: Worlds, peer: str) -> None:
    with pytest.raises(PeerAbsentError):
        whole(small, NoPeers()).peers[peer]()


def test_sglangs_rows_pass_again_after_steps_that_evicted_what_is_checked(
    small: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap_cases, "_STEPS", 6)
    parts = PeerParts(LruPeers(), HostPool())  # type: ignore[arg-type]
    # more misses in all steps than slots whose items the first of them does not ask for
    misses, swap_in = 32, "resolve + swap_in"
    for heads in (64, 128):  # one contender for both
        contender = parts.part(swap_in, SHAPE.batch, misses, heads)
        contender.check()
        timed = contender.timed
        assert timed.reset is not None
        timed.reset()
        for call in timed.calls:
            call()


def test_each_shape_is_there_whole_and_by_stage() -> None:
    cases = all_cases.all_cases(Worlds(), NoPeers(), HostPool())  # type: ignore[arg-type]
    names = [case.name for case in cases]
    splits, beside = (
        2 * (5 + 5 + 3 + 3),
        2 * (0 + 1 + 2 + 3),
    )  # of both head counts, batch after batch
    assert len(names) == len(set(names)) == 16 * (2 + len(STAGES)) + splits + beside
    batches = [int(re.findall(r"batch (\d+)", name)[0]) for name in names]
    assert batches == sorted(batches)  # each has a world of its own
    shape = "step batch 64, 2 % misses, L=128K, 128 heads"
    assert {f"{shape}, {WHOLE}{end}" for end in ("", ", flash_mla", ", unsplit")} <= set(names)


def row(stage: str, ours: float, peer: str = "", value: float | None = None) -> Row:
    case = f"step batch 8, 10 % misses, L=128K, 64 heads, {stage}"
    measured = Measurement(case, "median us", ours, "lower", peer, value)
    return make_row("step", measured, ENVIRONMENT)


ROWS = [
    row(f"{WHOLE}, unsplit", 90.0),  # no stage of the others
    row(f"{WHOLE}, flash_mla", 80.0, SUM, 150.0),
    row(WHOLE, 100.0, SUM, 150.0),
    row(WHOLE, 100.0, DENSE, 440.0),
    row("append", 10.0),
    row("select", 20.0, PARTS["select"], 80.0),
    row("attend", 30.0, PARTS["attend"], 40.0),
]


def test_bars_are_stacked_by_stage_and_end_where_the_whole_step_does() -> None:
    assert read_bars(ROWS) == [
        Bar(8, "10 %, 64, ours", {"append": 10.0, "select": 20.0, "attend": 30.0, REST: 40.0}),
        Bar(8, "10 %, 64, peers", {"select": 80.0, "attend": 40.0}),
        Bar(8, "10 %, 64, dense", {"attend": 440.0}),
    ]


def test_a_step_without_stages_is_one_bar() -> None:
    whole = row(WHOLE, 100.0, SUM, 150.0)
    assert read_bars([whole]) == [
        Bar(8, "10 %, 64, ours", {UNDIVIDED: 100.0}),
        Bar(8, "10 %, 64, peers", {UNDIVIDED: 150.0}),
    ]


def test_steps_become_an_image(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    plot_stages(ROWS, tmp_path / "step.png")
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="0 times of steps"):
        plot_stages(ROWS[:0], tmp_path / "none.png")
