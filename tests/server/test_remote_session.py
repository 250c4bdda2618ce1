"""A session over gRPC is a session in process: the same bits, the same numbers, the same errors."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from hisparse_sidecar import LocalSession, Session, Sidecar, SidecarConfig
from hisparse_sidecar.client import RemoteSession
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.server import SidecarServer
from tests.pipeline.test_errors import BAD_INPUTS
from tests.pipeline.world import FLAT, HISA, random_rows, small_config
from tests.server.serving import assert_equal, run_layers, run_step


def live(session: Session, selection: SelectionConfig) -> list:
    """A life with everything in it: chunks, a fork, an aborted step, a rejection, decoding."""
    one = session.open(150, 20, selection=selection, hot_slots=80, window_blocks=7)
    other = session.open(70, 20)
    seen = run_step(session, [(one, 90)], 1) + run_step(session, [(one, 60), (other, 70)], 2)
    session.begin_step([(one, 1)], "decode")
    run_layers(session, [(one, 1)], 3)
    session.abort_step()
    child = session.fork(one, 130, 10)
    session.truncate(one, 145)
    for seed in (4, 5):
        seen += run_step(session, [(one, 1), (child, 1), (other, 1)], seed, "decode")
    session.close_sequence(other)
    session.begin_step([(child, 1)], "decode", padded_rows=3)
    seen += [
        session.run_layer(layer, random_rows(session.config, layer, 3, 6)) for layer in range(3)
    ]
    session.end_step()
    return [*seen, session.tier_bytes(one), session.tier_bytes(child)]


@pytest.mark.parametrize(
    ("selection", "changes"),
    [
        (FLAT, {}),
        (HISA, {"kv_layout": "fp32", "index_layout": "fp32"}),
        (SelectionConfig("misa", routed_heads=2), {"kv_layout": "bf16"}),
        (SelectionConfig("misa_dagger", routed_heads=2, candidates=96), {}),
    ],
)
def test_a_life_over_grpc_gives_the_bits_of_a_life_in_process(
    tmp_path: Path, selection: SelectionConfig, changes: dict[str, object]
) -> None:
    config = small_config(**changes)
    with Sidecar(config) as sidecar:
        local = LocalSession(sidecar)
        *wanted, one, child = live(local, selection)
        with SidecarServer(config, tmp_path / "s") as server, RemoteSession(tmp_path / "s") as far:
            assert far.config == replace(config, hot_slots=config.default_hot_slots)
            *found, far_one, far_child = live(far, selection)
            assert_equal(found, wanted)
            assert (far_one, far_child) == (one, child)
            ours, theirs = local.stats(), far.stats()
            assert theirs.groups == ours.groups
            assert (
                (theirs.steps, theirs.aborted_steps) == (5, 1) == (ours.steps, ours.aborted_steps)
            )
            assert theirs.held == ours.held
            for name, value in asdict(theirs.core).items():
                assert value == getattr(ours.core, name), name
        assert not server.socket_path.exists()


def test_given_positions_and_a_sink_reach_the_sidecar(session: RemoteSession) -> None:
    sequence = session.open(3, 0, selection=SelectionConfig("given"))
    positions = torch.full((3, 48), -1, dtype=torch.int32)
    positions[:, 0] = torch.tensor([0, 0, 1])
    session.begin_step([(sequence, 3)], "prefill")
    rows = replace(random_rows(session.config, 0, 3, 1), index_q=None, index_weights=None)
    given = session.run_layer(0, replace(rows, topk_indices=positions))
    assert torch.equal(given.topk_indices, positions)
    for sink, layer in ((torch.full((3,), 50.0), 1), (None, 2)):
        shared = layer == 1
        rows = random_rows(session.config, layer, 3, 1)
        if not shared:
            rows = replace(rows, index_q=None, index_weights=None, topk_indices=positions)
        outputs = session.run_layer(layer, replace(rows, sink=sink))
        assert (outputs.out.abs().max() < 1e-3) == shared  # a large sink takes all the weight
    session.end_step()


def test_a_region_grows_with_the_layer_that_needs_it(server: SidecarServer) -> None:
    with RemoteSession(server.socket_path, region_bytes=4096) as session:
        sequence = session.open(300, 0)
        small = run_step(session, [(sequence, 1)], 1)
        run_step(session, [(sequence, 299)], 2)
    with RemoteSession(server.socket_path, region_bytes=1 << 24) as session:
        assert_equal(run_step(session, [(session.open(300, 0), 1)], 1), small)


@pytest.mark.parametrize("name", list(BAD_INPUTS))
def test_bad_layer_inputs_are_refused_with_the_words_of_the_local_session(
    session: RemoteSession, name: str
) -> None:
    change, _ = BAD_INPUTS[name]
    with Sidecar(small_config()) as sidecar:
        assert_same_refusal(
            session,
            LocalSession(sidecar),
            lambda one: one.run_layer(0, change(random_rows(one.config, 0, 2, 1))),
        )


BAD_CALLS: dict[str, Callable[[Session, int, int], object]] = {
    "negative prompt": lambda session, one, closed: session.open(-1, 4),
    "prompt beyond the pool": lambda session, one, closed: session.open(10**6, 0),
    "few hot slots": lambda session, one, closed: session.open(1, 1, hot_slots=7),
    "no window": lambda session, one, closed: session.open(1, 1, window_blocks=0),
    "many heads": lambda session, one, closed: session.open(
        1, 1, selection=SelectionConfig("misa", routed_heads=9)
    ),
    "unknown sequence": lambda session, one, closed: session.close_sequence(99),
    "closed sequence": lambda session, one, closed: session.close_sequence(closed),
    "truncate past the end": lambda session, one, closed: session.truncate(one, 10**6),
    "fork past the end": lambda session, one, closed: session.fork(one, 3, 10),
    "fork of a closed one": lambda session, one, closed: session.fork(closed, 0, 10),
    "bytes of a closed one": lambda session, one, closed: session.tier_bytes(closed),
    "step of a closed one": lambda session, one, closed: session.begin_step(
        [(closed, 1)], "decode"
    ),
    "step of nothing": lambda session, one, closed: session.begin_step([], "decode"),
    "step without rows": lambda session, one, closed: session.begin_step([(one, 0)], "decode"),
    "negative rows": lambda session, one, closed: session.begin_step([(one, -3)], "prefill"),
    "many rows": lambda session, one, closed: session.begin_step([(one, 2)], "decode"),
    "beyond admission": lambda session, one, closed: session.begin_step([(one, 99)], "prefill"),
    "twice the same": lambda session, one, closed: session.begin_step([(one, 1)] * 2, "prefill"),
    "few padded rows": lambda session, one, closed: session.begin_step(
        [(one, 3)], "prefill", padded_rows=2
    ),
    "unknown kind": lambda session, one, closed: session.begin_step([(one, 1)], "verify"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", list(BAD_CALLS))
def test_bad_calls_are_refused_with_the_words_of_the_local_session(
    session: RemoteSession, name: str
) -> None:
    with Sidecar(small_config()) as sidecar:
        errors = []
        for one in (session, LocalSession(sidecar)):
            sequence, closed = one.open(20, 2), one.open(1, 0)
            one.close_sequence(closed)
            with pytest.raises(Exception, match=r"\d|verify") as refused:
                BAD_CALLS[name](one, sequence, closed)
            errors.append((refused.type, str(refused.value)))
            run_step(one, [(sequence, 20)], 1)
            run_step(one, [(sequence, 1)], 2, "decode")
        assert errors[0] == errors[1]


@pytest.mark.parametrize("layer", [-1, 3, 1 << 40])
def test_a_layer_that_is_not_there_is_refused_with_the_words_of_the_local_session(
    session: RemoteSession, layer: int
) -> None:
    with Sidecar(small_config()) as sidecar:
        assert_same_refusal(
            session,
            LocalSession(sidecar),
            lambda one: one.run_layer(layer, random_rows(one.config, 0, 2, 1)),
        )


def assert_same_refusal(
    session: RemoteSession, local: LocalSession, call: Callable[[Session], object]
) -> None:
    """In a step of two rows; the step goes on as if nothing had been."""
    errors, outputs = [], []
    for one in (session, local):
        rows = [(one.open(2, 2), 2)]
        one.begin_step(rows, "prefill")
        with pytest.raises(InvalidArgument) as refused:
            call(one)
        errors.append((refused.type, str(refused.value)))
        outputs.append(run_layers(one, rows, 1))
        one.end_step()
    assert errors[0] == errors[1]
    assert_equal(*outputs)


def test_a_session_knows_the_configuration_of_its_server(tmp_path: Path) -> None:
    config: SidecarConfig = small_config(
        selection=SelectionConfig("misa_dagger", 5, 3, 77),
        max_step_rows=3,
        hot_slots=144,
        max_logits_bytes=1 << 20,
    )
    with SidecarServer(config, tmp_path / "s"), RemoteSession(tmp_path / "s") as session:
        assert session.config == config
