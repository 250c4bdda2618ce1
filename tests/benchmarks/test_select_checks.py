"""Each case of the suite `select`, small and in the interpreter: checks pass, and can fail."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from benchmarks.ops import ours
from benchmarks.ops.case import PeerAbsentError, Prepared
from benchmarks.ops.compare import WrongResultError
from benchmarks.select.decode_cases import Decode
from benchmarks.select.hisa import HisaSelection
from benchmarks.select.missing_cases import _AIM
from benchmarks.select.real_rows import RealRows
from benchmarks.select.residency import Fetched, LookedUp
from benchmarks.select.rows import Rows
from benchmarks.select.window import partial_window
from hisparse_kernels.gpu.interpreter import interpreting
from tests.benchmarks.small_selections import HEADS, KEPT, PEERED, SMALL, TOPK, shrink
from tests.benchmarks.stand_ins import CudaIsCpu, HostPool, IdleOps, NoPeers, StandInPeers

CASES = pytest.mark.parametrize("kind", SMALL)
WITH_PEER = pytest.mark.parametrize("kind", PEERED)
RESIDENCIES = pytest.mark.parametrize("fetches", [True, False], ids=["fetched", "in place"])


@pytest.fixture(scope="module")
def real() -> RealRows:
    """Rows of the model, which runs once for all tests."""
    return RealRows()


@pytest.fixture(autouse=True)
def small_and_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not interpreting():
        pytest.skip("Triton compiles here: the suite itself checks its cases")
    shrink(monkeypatch)
    torch.manual_seed(0)
    with CudaIsCpu():
        yield


def prepare(kind: str, peers: object, real: RealRows) -> Prepared:
    return SMALL[kind](peers, HostPool(), real)


@CASES
def test_our_selection_and_the_peers_pass_the_checks(kind: str, real: RealRows) -> None:
    prepared = prepare(kind, StandInPeers(), real)
    prepared.ours.check()
    assert prepared.peers or kind.startswith("select_")
    for make in prepared.peers.values():
        make().check()
    for call in prepared.ours.timed.calls:
        call()
    assert prepared.work.operations > 0
    assert all(0 <= value <= 1 for value in prepared.facts().values())


@CASES
def test_ops_that_do_nothing_do_not_pass(
    kind: str, real: RealRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "import_module", lambda name: IdleOps())
    prepared = prepare(kind, StandInPeers(), real)
    with pytest.raises(WrongResultError):
        prepared.ours.check()


@WITH_PEER
def test_a_peer_with_wrong_results_does_not_pass(kind: str, real: RealRows) -> None:
    prepared = prepare(kind, StandInPeers(spoil=torch.zeros_like), real)
    for make in prepared.peers.values():
        contender = make()
        with pytest.raises(WrongResultError):
            contender.check()


@WITH_PEER
def test_a_peer_that_did_not_load_is_absent(kind: str, real: RealRows) -> None:
    for make in prepare(kind, NoPeers(), real).peers.values():
        with pytest.raises(PeerAbsentError):
            make()


def test_missing_blocks_may_take_the_time_of_their_bytes_on_top() -> None:
    prepared = SMALL["decode, fetched"](None, HostPool(), None)
    missing_bytes = 2 * 1 * 128 * 132
    assert prepared.work.to_device_bytes == missing_bytes
    assert prepared.peers[_AIM]().allowed_seconds == missing_bytes / 50e9


def test_rows_of_one_sequence_are_given_to_the_peer_together_and_apart(real: RealRows) -> None:
    peers = prepare("decode, next_n", StandInPeers(), real).peers
    assert list(peers) == ["DeepGEMM + DeepSelect", "DeepGEMM, rows apart + DeepSelect"]


@RESIDENCIES
def test_missing_blocks_change_no_position(fetches: bool) -> None:
    rows, found = one_set(), []
    for misses in (0, 1):
        window = partial_window(rows, HostPool(), 3, KEPT, misses)
        made = Fetched(rows, KEPT, window) if fetches else LookedUp(rows, KEPT, window)
        selection = HisaSelection(rows, made, TOPK, KEPT)
        selection.check()
        selection.run()
        found.append(selection.positions)
    assert torch.equal(*found)


@RESIDENCIES
def test_spoiled_host_memory_does_not_pass(fetches: bool) -> None:
    rows, pool = one_set(), HostPool()
    window = partial_window(rows, pool, 0, KEPT, 1)
    made = Fetched(rows, KEPT, window) if fetches else LookedUp(rows, KEPT, window)
    pool.host.fill_(1)
    with pytest.raises(WrongResultError):
        HisaSelection(rows, made, TOPK, KEPT).check()


def test_a_window_that_misses_something_else_than_it_says_does_not_pass() -> None:
    rows = one_set()
    window = replace(partial_window(rows, HostPool(), 0, KEPT, 1), misses=0)
    with pytest.raises(WrongResultError, match="misses: 1 to 1 of a row, needs 0"):
        HisaSelection(rows, Fetched(rows, KEPT, window), TOPK, KEPT).check()


def test_a_step_can_be_repeated_after_a_reset() -> None:
    rows = one_set()
    window = partial_window(rows, HostPool(), 0, KEPT, 1)
    selection = HisaSelection(rows, Fetched(rows, KEPT, window), TOPK, KEPT)
    before = window.absolute_table()
    selection.run()
    assert not torch.equal(window.absolute_table(), before)
    selection.reset()
    assert torch.equal(window.absolute_table(), before)


def test_a_pool_that_is_too_small_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="59 host pages needed, the pool has 0"):
        partial_window(one_set(), HostPool(1000), 55, KEPT, 1)


def test_more_misses_than_a_row_surely_wants_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="2 misses asked for, at most 1 of 4 blocks"):
        partial_window(one_set(), HostPool(), 0, KEPT, 2)


def one_set() -> Rows:
    """Two sequences of 8 blocks, one row each."""
    return Decode(2, 1, heads=HEADS).draw(1024)[0]
