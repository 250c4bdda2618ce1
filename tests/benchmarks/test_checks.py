"""Each case of the suite `ops`, small and in the interpreter: its checks pass, and can fail."""

from collections.abc import Iterator

import pytest
import torch

from benchmarks.ops import ours
from benchmarks.ops.case import PeerAbsentError
from benchmarks.ops.compare import WrongResultError
from hisparse_kernels.gpu.interpreter import interpreting
from tests.benchmarks.small_cases import SMALL, shrink
from tests.benchmarks.stand_ins import CudaIsCpu, HostPool, IdleOps, NoPeers, StandInPeers

CASES = pytest.mark.parametrize("kind", SMALL)
PEERED = pytest.mark.parametrize(
    "kind",
    [
        "index_logits",
        "paged_index_logits",
        "resolve + swap_in",
        "resolve + swap_in, all resident",
        "sparse_mla, bf16 decode",
        "sparse_mla, decode",
        "sparse_mla, fp8",
        "sparse_mla, prefill",
        "topk",
    ],
)
OWN_PEERS = ("torch.topk", "torch.topk, none forced", "one pinned copy")


@pytest.fixture(autouse=True)
def small_and_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not interpreting():
        pytest.skip("Triton compiles here: the suite itself checks its cases")
    shrink(monkeypatch)
    torch.manual_seed(0)
    with CudaIsCpu():
        yield


@CASES
def test_our_op_and_the_peers_pass_the_checks(kind: str) -> None:
    prepared = SMALL[kind](StandInPeers(), HostPool())
    prepared.ours.check()
    for make in prepared.peers.values():
        make().check()
    for call in prepared.ours.timed.calls:
        call()
    assert prepared.work.device_bytes > 0


@CASES
def test_an_op_that_does_nothing_does_not_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "import_module", lambda name: IdleOps())
    prepared = SMALL[kind](StandInPeers(), HostPool())
    with pytest.raises(WrongResultError):
        prepared.ours.check()


@PEERED
def test_a_peer_with_wrong_results_does_not_pass(kind: str) -> None:
    prepared = SMALL[kind](StandInPeers(spoil=torch.zeros_like), HostPool())
    prepared.ours.check()
    foreign = prepared.peers.keys() - OWN_PEERS
    assert foreign
    for name in foreign:
        contender = prepared.peers[name]()
        with pytest.raises(WrongResultError):
            contender.check()


@PEERED
def test_a_peer_that_did_not_load_is_absent(kind: str) -> None:
    prepared = SMALL[kind](NoPeers(), HostPool())
    foreign = prepared.peers.keys() - OWN_PEERS
    assert foreign
    for name in foreign:
        with pytest.raises(PeerAbsentError):
            prepared.peers[name]()
