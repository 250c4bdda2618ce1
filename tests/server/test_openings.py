"""Prompts are opened beside the steps of others: their pages are loaded meanwhile, and right."""

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from hisparse_sidecar import LayerInputs, LayerOutputs, Session, Sidecar
from hisparse_sidecar.client import RemoteSession
from hisparse_sidecar.errors import DeviceArenaFull, HostPoolFull
from hisparse_sidecar.server import SidecarServer
from hisparse_sidecar.sidecar import LocalSession
from tests.pipeline.world import random_rows, small_config
from tests.server.serving import END_SECONDS, assert_equal
from tests.server.test_tiers import PAGE_TOKENS, config_with_files

LENGTH, SHARED_TOKENS = 3 * PAGE_TOKENS + 20, 3 * PAGE_TOKENS
NUM_TEXTS, NUM_CLIENTS, ROUNDS = 6, 3, 8


def rows_of(session: Session, layer: int, text: int, first: int) -> LayerInputs:
    """The rows of a text from its token `first` on, whatever is cached."""
    whole = random_rows(session.config, layer, LENGTH, text)
    names = ("query", "kv", "index_q", "index_weights", "index_k")
    cut = {name: value[first:] for name in names if (value := getattr(whole, name)) is not None}
    return replace(whole, **cut)


def prefill(session: Session, sequence: int, text: int, cached: int) -> list[LayerOutputs]:
    session.begin_step(
        [(sequence, LENGTH - cached)],
        "prefill",
        token_ids=tokens(text)[cached:],  # type: ignore[call-arg]
    )
    layers = range(session.config.model.num_layers)
    outputs = [session.run_layer(one, rows_of(session, one, text, cached)) for one in layers]
    session.end_step()
    return outputs


def tokens(text: int) -> list[int]:
    return [1000 * text + at for at in range(LENGTH)]


def last_rows(outputs: list[LayerOutputs]) -> list[LayerOutputs]:
    """Of the tokens that no other sequence can have computed."""
    count = LENGTH - SHARED_TOKENS
    names = ("out", "lse", "topk_indices")
    return [
        LayerOutputs(**{name: getattr(one, name)[-count:] for name in names}) for one in outputs
    ]


@dataclass
class Reader:
    """A client that opens one text after the other; every row is to be what it is alone."""

    session: RemoteSession
    wanted: dict[int, list[LayerOutputs]]
    found_tokens: int = 0
    failed: list[BaseException] = field(default_factory=list)

    def run(self, seed: int) -> None:
        draw = random.Random(seed)
        try:
            for _ in range(ROUNDS):
                self.read(draw.randrange(NUM_TEXTS))
        except BaseException as error:  # the test raises it
            self.failed.append(error)

    def read(self, text: int) -> None:
        opened = self.session.open_prompt(tokens(text), 0)
        self.found_tokens += opened.cached_tokens
        outputs = prefill(self.session, opened.sequence, text, opened.cached_tokens)
        assert_equal(last_rows(outputs), self.wanted[text])
        self.session.close_sequence(opened.sequence)


def alone() -> Iterator[tuple[int, list[LayerOutputs]]]:
    with Sidecar(small_config()) as sidecar:
        session = LocalSession(sidecar)
        for text in range(NUM_TEXTS):
            sequence = session.open(LENGTH, 0)
            yield text, last_rows(prefill(session, sequence, text, 0))
            session.close_sequence(sequence)


def test_pages_that_are_loaded_beside_steps_are_right(tmp_path: Path) -> None:
    """Room for the pages of four sequences: what is opened again comes from the files."""
    wanted = dict(alone())
    config = config_with_files(tmp_path, 0.25, host_pages=16, load_seconds=60.0, call_seconds=60.0)
    with SidecarServer(config, tmp_path / "s") as server:
        sessions = [RemoteSession(server.socket_path) for _ in range(NUM_CLIENTS)]
        readers = [Reader(session, wanted) for session in sessions]
        threads = [
            threading.Thread(target=reader.run, args=(seed,)) for seed, reader in enumerate(readers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(3 * END_SECONDS)
            assert not thread.is_alive()
        assert [error for reader in readers for error in reader.failed] == []
        (tier,) = sessions[0].client.server_stats().tiers
        assert tier.promoted > 0
        assert sum(reader.found_tokens for reader in readers) > 0
        core = sessions[0].stats().core
        assert (core.sequences, core.opened) == (0, core.closed)
        for session in sessions:
            session.close()


def test_openings_that_are_refused_beside_each_other_leave_nothing(tmp_path: Path) -> None:
    """Twelve at once where there is room for four; each is opened or refused, whole."""
    config = config_with_files(tmp_path, host_pages=16)
    opened, refused = [], []
    with (
        SidecarServer(config, tmp_path / "s") as server,
        RemoteSession(server.socket_path) as session,
    ):

        def ask(text: int) -> None:
            try:
                opened.append(session.client.open_prompt(tokens(text), 0).sequence)
            except (DeviceArenaFull, HostPoolFull) as error:
                refused.append(error)

        threads = [threading.Thread(target=ask, args=(text,)) for text in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(END_SECONDS)
        assert (len(opened), len(refused)) == (4, 8)
        for sequence in opened:
            session.close_sequence(sequence)
        assert session.stats().core.host_pages_free == 16
        with pytest.raises(HostPoolFull):
            session.open(17 * PAGE_TOKENS, 0)
        session.close_sequence(session.open(16 * PAGE_TOKENS, 0))
