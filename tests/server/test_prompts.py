"""Prompts, rest and tenants over gRPC: as in process, and each client sees its own only."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hisparse_sidecar import LayerInputs, LayerOutputs, Session, Sidecar, SidecarConfig
from hisparse_sidecar.client import RemoteSession
from hisparse_sidecar.errors import HostPoolFull, InvalidArgument, TierFull, WrongState
from hisparse_sidecar.server import SidecarServer, main
from hisparse_sidecar.sidecar import LocalSession
from hisparse_sidecar.wire.errors import NotOwner
from tests.pipeline.world import random_rows, small_config
from tests.server.serving import END_SECONDS, ServerProgram, assert_equal, run_layers, run_step

PAGE_TOKENS = 64
PROMPT = list(range(1000, 1300))  # 300 tokens: 4 pages that others may share, and 44 more
CACHED = 256


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SidecarServer]:
    config = small_config(host_pages=24, max_sequences=5)
    quotas = {"a": 8, "b": 12}
    with SidecarServer(config, tmp_path / "s", quota_pages=quotas) as running:
        yield running


def prefill(session: Session, sequence: int, cached: int) -> list[LayerOutputs]:
    """The rows of the prompt from `cached` on, the same whatever is cached."""
    rows = [(sequence, len(PROMPT) - cached)]
    session.begin_step(rows, "prefill", token_ids=PROMPT[cached:])  # type: ignore[call-arg]
    outputs = [
        session.run_layer(layer, _rows(session.config, layer, cached))
        for layer in range(session.config.model.num_layers)
    ]
    session.end_step()
    return outputs


def _rows(config: SidecarConfig, layer: int, first: int) -> LayerInputs:
    whole = random_rows(config, layer, len(PROMPT), 1)
    names = ("query", "kv", "index_q", "index_weights", "index_k")
    cut = {name: value[first:] for name in names if (value := getattr(whole, name)) is not None}
    return replace(whole, **cut)


def decode(session: Session, sequence: int, seed: int, token_id: int | None = None) -> list:
    told = {} if token_id is None else {"token_ids": [token_id]}
    session.begin_step([(sequence, 1)], "decode", **told)  # type: ignore[arg-type]
    outputs = run_layers(session, [(sequence, 1)], seed)
    session.end_step()
    return outputs


def plain_outputs(config: SidecarConfig, steps: int) -> list[list[LayerOutputs]]:
    """Decode steps after the prompt in a sidecar that shares nothing."""
    with Sidecar(config) as sidecar:
        session = LocalSession(sidecar)
        sequence = session.open(len(PROMPT), 100)
        session.begin_step([(sequence, len(PROMPT))], "prefill")
        for layer in range(config.model.num_layers):
            session.run_layer(layer, _rows(config, layer, 0))
        session.end_step()
        return [decode(session, sequence, seed) for seed in range(steps)]


def open_and_prefill(session: RemoteSession, tenant: str = "") -> tuple[int, int]:
    opened = session.open_prompt(PROMPT, 84, tenant=tenant)
    prefill(session, opened.sequence, opened.cached_tokens)
    return opened.sequence, opened.cached_tokens


def test_a_prompt_begins_where_the_pages_of_another_end(session: RemoteSession) -> None:
    wanted = plain_outputs(session.config, 3)
    first, cached = open_and_prefill(session)
    assert cached == 0
    session.close_sequence(first)
    again, cached = open_and_prefill(session)
    assert cached == CACHED
    for seed, outputs in enumerate(wanted):
        assert_equal(decode(session, again, seed, token_id=seed), outputs)


def test_clients_share_the_pages_of_a_prompt_but_not_its_sequence(server: SidecarServer) -> None:
    with RemoteSession(server.socket_path) as one, RemoteSession(server.socket_path) as other:
        sequence, _ = open_and_prefill(one)
        used = one.stats().core.host_pages_free
        assert open_and_prefill(other)[1] == CACHED
        assert used - other.stats().core.host_pages_free == 2  # 6 pages, of which 4 are shared
        for call in (
            lambda: other.preempt(sequence),
            lambda: other.resume(sequence),
            lambda: other.close_sequence(sequence),
            lambda: other.fork(sequence, 0, 0),
            lambda: other.begin_step([(sequence, 1)], "decode", token_ids=[1]),
        ):
            with pytest.raises(NotOwner, match="belongs to client"):
                call()


def test_told_tokens_of_decode_steps_are_found_by_later_prompts(session: RemoteSession) -> None:
    sequence, _ = open_and_prefill(session)
    generated = list(range(20))
    for token_id in generated:
        decode(session, sequence, 1, token_id)
    session.close_sequence(sequence)
    assert session.open_prompt([*PROMPT, *generated, 7], 0).cached_tokens == 5 * PAGE_TOKENS


def test_a_preempted_sequence_leaves_its_place_and_goes_on(session: RemoteSession) -> None:
    wanted = plain_outputs(session.config, 2)
    sequence, _ = open_and_prefill(session)
    assert_equal(decode(session, sequence, 0), wanted[0])
    slots = session.stats().core.slots_used
    session.preempt(sequence)
    assert session.stats().core.slots_used < slots
    with pytest.raises(WrongState):
        session.preempt(sequence)
    with pytest.raises(WrongState):
        session.begin_step([(sequence, 1)], "decode")
    assert session.resume(sequence) == len(PROMPT) + 1
    with pytest.raises(WrongState):
        session.resume(sequence)
    assert_equal(decode(session, sequence, 1), wanted[1])


def test_a_preempted_sequence_ends_with_its_client(server: SidecarServer) -> None:
    with RemoteSession(server.socket_path) as watcher:
        with RemoteSession(server.socket_path) as session:
            session.preempt(open_and_prefill(session)[0])
        core = watcher.stats().core
        assert (core.sequences, core.slots_used) == (0, 0)
        watcher.close_sequence(watcher.open(24 * PAGE_TOKENS, 0))  # all pages can be had


def test_preempting_and_opening_wait_for_the_step_of_another_client(server: SidecarServer) -> None:
    with RemoteSession(server.socket_path) as one, RemoteSession(server.socket_path) as other:
        sequence, _ = open_and_prefill(one)
        mine = [(other.open(8, 0), 8)]
        other.begin_step(mine, "prefill")
        calls = [
            threading.Thread(target=one.preempt, args=(sequence,)),
            threading.Thread(target=one.open_prompt, args=(PROMPT, 0)),
        ]
        for call in calls:
            call.start()
        run_layers(other, mine, 1)
        assert all(call.is_alive() for call in calls)
        other.end_step()
        for call in calls:
            call.join(END_SECONDS)
        assert one.resume(sequence) == len(PROMPT)
        assert one.stats().core.sequences == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tenant": "nobody"}, "unknown tenant: named 1, 3 known, none of that name"),
        ({"token_ids": [-1]}, "token_ids is -1, needs 0 to 4294967295"),
        ({"token_ids": [1 << 32]}, "token_ids is 4294967296, needs 0 to 4294967295"),
        ({"token_ids": [], "tenant": "a"}, "0 token_ids are given, needs 1 or more"),
    ],
)
def test_a_bad_prompt_is_refused(session: RemoteSession, values: dict, message: str) -> None:
    before = session.stats()
    arguments = {"token_ids": PROMPT, "max_new_tokens": 0} | values
    with pytest.raises(InvalidArgument, match=message) as refused:
        session.open_prompt(**arguments)
    assert "'a'" not in str(refused.value)
    assert session.stats() == before


def test_token_ids_must_be_as_many_as_the_rows(session: RemoteSession) -> None:
    sequence = session.open_prompt(PROMPT, 84).sequence
    with pytest.raises(InvalidArgument, match="token"):
        session.begin_step([(sequence, 2)], "prefill", token_ids=[1])
    run_step(session, [(sequence, 2)], 1)


def test_the_same_prompt_of_another_tenant_is_not_a_hit(session: RemoteSession) -> None:
    assert open_and_prefill(session, "a")[1] == 0
    assert open_and_prefill(session, "b")[1] == 0
    assert session.open_prompt(PROMPT, 0).cached_tokens == 0
    assert session.open_prompt(PROMPT, 84, tenant="b").cached_tokens == CACHED


def test_a_tenant_that_floods_gets_its_share_and_the_other_its_own(server: SidecarServer) -> None:
    """A asks for ten times its 8 pages while B uses half of its 12, time and again."""
    with RemoteSession(server.socket_path) as flooding, RemoteSession(server.socket_path) as other:
        refused = 0
        for round_ in range(20):
            prompt = [round_ * 1000 + at for at in range(4 * PAGE_TOKENS)]
            try:
                flooding.open_prompt(prompt, 0, tenant="a")
            except TierFull as error:
                assert "share of tenant" in str(error)  # noqa: PT017
                refused += 1
            opened = other.open_prompt(PROMPT, 84, tenant="b")
            assert opened.cached_tokens == (0 if round_ == 0 else CACHED)
            prefill(other, opened.sequence, opened.cached_tokens)
            other.close_sequence(opened.sequence)
            tenants = other.client.server_stats().tenants
            assert tenants["a"][0] <= tenants["a"][1] == 8
            assert tenants["b"][0] <= tenants["b"][1] == 12
        assert refused == 18


def test_sessions_are_retracted_for_others_and_come_back(server: SidecarServer) -> None:
    """Room for four: each that is retracted lets another in, and goes on when that has ended."""
    with RemoteSession(server.socket_path) as session:
        admitted = [session.open(300, 84) for _ in range(4)]
        for sequence in admitted:
            run_step(session, [(sequence, 300)], 1)
        with pytest.raises(HostPoolFull):
            session.open(64, 0)
        session.preempt(admitted[0])
        late = session.open(64, 0)
        run_step(session, [(late, 64)], 1)
        session.close_sequence(late)
        assert session.resume(admitted[0]) == 300
        for step in range(84):
            run_step(session, [(sequence, 1) for sequence in admitted], step, "decode")


def test_the_program_takes_tenants_by_flags(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    flags = ("--tenant", "a=8", "--tenant", "b=c=5", "--tenant", "=2")
    with (
        ServerProgram(folder, None, *flags) as server,
        RemoteSession(server.socket_path) as session,
    ):
        session.open_prompt(PROMPT, 0, tenant="b=c")
        assert session.client.server_stats().tenants == {"a": (0, 8), "b=c": (5, 5), "": (0, 2)}
        with pytest.raises(TierFull, match="full: need 9 pages, 8 free of 8"):
            session.open_prompt(PROMPT, 276, tenant="a")
        session.open(128, 0)
        for open_one_more in (lambda: session.open(1, 0), lambda: session.open_prompt([7], 0)):
            with pytest.raises(TierFull, match="share of tenant 0 full: need 1 pages, 0 free of 2"):
                open_one_more()


@pytest.mark.parametrize("text", ["a", "5", "a=", "=", "a=-1", "a=many"])
def test_a_tenant_that_is_no_name_and_pages_is_refused(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--socket", "s", "--config", "c", f"--tenant={text}"])
    assert f"{text!r} is not NAME=PAGES" in capsys.readouterr().err
