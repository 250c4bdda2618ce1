"""Prompts that begin alike, sequences that rest, restarts: outputs are those of a plain life."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hisparse_sidecar import LayerInputs, LayerOutputs, Sidecar, SidecarConfig
from hisparse_sidecar.config import TiersConfig
from hisparse_sidecar.errors import (
    HostPoolFull,
    InvalidArgument,
    StaleHandle,
    TierFull,
    WrongState,
)
from tests.pipeline.world import FLAT, HISA, assert_same_bits, on_cpu, random_rows, small_config

MOST = 450  # rows of a prompt and what follows it
PROMPT = 300


def config_with_files(path: Path, **changes: object) -> SidecarConfig:
    """A small sidecar whose pages may go to files below `path`; nothing is measured."""
    tiers = TiersConfig(
        file_directory=str(path / "pages"),
        file_bytes=1 << 26,
        segment_bytes=1 << 22,
        model_name="small",
        free_share=0.0,
        probe_seconds=0.0,
    )
    return small_config(tiers=tiers, **changes)


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    """One that the test may leave in any state."""
    with Sidecar(config_with_files(tmp_path)) as sidecar:
        yield sidecar


def tokens(seed: int, start: int, count: int) -> list[int]:
    """Ids of the text of a seed; texts of 0 to 9 begin with the same 150 tokens."""
    shared = 0 if seed < 10 else seed
    return [(shared if at < 150 else seed) * 10_000 + at for at in range(start, start + count)]


def rows_of(config: SidecarConfig, layer: int, seed: int, start: int, count: int) -> LayerInputs:
    """Rows that depend on the tokens before them alone, however they are cut into chunks."""
    shared = random_rows(config, layer, MOST, 0 if seed < 10 else seed)
    own = random_rows(config, layer, MOST, seed)

    def cut(name: str) -> torch.Tensor | None:
        value = getattr(own, name)
        if value is None:
            return None
        whole = torch.cat([getattr(shared, name)[:150], value[150:]])
        return whole[start : start + count]

    names = ("query", "kv", "index_q", "index_weights", "index_k")
    return LayerInputs(**{name: cut(name) for name in names})  # type: ignore[arg-type]


def extend(sidecar: Sidecar, sequence: int, seed: int, count: int, kind: str) -> list[LayerOutputs]:
    """The next `count` tokens of a text."""
    start = sidecar.length(sequence)
    ids = tokens(seed, start, count)
    sidecar.begin_step([(sequence, count)], kind, token_ids=ids)  # type: ignore[arg-type]
    outputs = [
        on_cpu(sidecar.run_layer(layer, rows_of(sidecar.config, layer, seed, start, count)))
        for layer in range(sidecar.config.model.num_layers)
    ]
    sidecar.commit_step()
    sidecar.check_integrity()
    return outputs


def open_text(sidecar: Sidecar, seed: int, tenant: str = "") -> tuple[int, int]:
    """A sequence with the first 300 tokens of a text, and how many of them were found."""
    sequence, cached = sidecar.open_prompt(tokens(seed, 0, PROMPT), 200, tenant=tenant)
    assert sidecar.length(sequence) == cached
    sidecar.check_integrity()
    extend(sidecar, sequence, seed, PROMPT - cached, "prefill")
    return sequence, cached


def plain_outputs(seed: int, num_steps: int, **changes: object) -> list[list[LayerOutputs]]:
    """Decode steps of a text in a sidecar that shares nothing."""
    with Sidecar(small_config(**changes)) as sidecar:
        sequence = sidecar.open(PROMPT, 200)
        extend(sidecar, sequence, seed, PROMPT, "prefill")
        return [extend(sidecar, sequence, seed, 1, "decode") for _ in range(num_steps)]


def assert_goes_on(sidecar: Sidecar, sequence: int, wanted: list[list[LayerOutputs]]) -> None:
    for step in wanted:
        assert_same_bits(extend(sidecar, sequence, 1, 1, "decode"), step)


@pytest.mark.parametrize("selection", [HISA, FLAT], ids=["hisa", "flat"])
def test_a_prompt_goes_on_from_the_pages_that_another_left(selection, tmp_path: Path) -> None:
    wanted = plain_outputs(1, 3, selection=selection)
    with Sidecar(config_with_files(tmp_path, selection=selection)) as sidecar:
        first, cached = open_text(sidecar, 1)
        assert cached == 0
        again, cached = open_text(sidecar, 1)
        assert cached == 256
        other, cached = open_text(sidecar, 2)
        assert cached == 128  # two pages of the 150 tokens that all these texts begin with
        core = sidecar.stats().core
        assert core.host_pages_total - core.host_pages_free - core.host_pages_reserved == 5 + 1 + 3
        assert_goes_on(sidecar, again, wanted)
        for sequence in (first, again, other):
            sidecar.close_sequence(sequence)
        late, cached = open_text(sidecar, 1)
        assert cached == 256  # idle pages stay
        assert_goes_on(sidecar, late, wanted)


def test_a_restart_finds_what_was_drained(tmp_path: Path) -> None:
    config = config_with_files(tmp_path)
    wanted = plain_outputs(1, 2)
    with Sidecar(config) as sidecar:
        sidecar.close_sequence(open_text(sidecar, 1)[0])
        assert sidecar.drain(10.0) == (4, 0)
    with Sidecar(config) as sidecar:
        assert sidecar.prefix_stats().lower == 4
        sequence, cached = open_text(sidecar, 1)
        assert cached == 256
        assert_goes_on(sidecar, sequence, wanted)
        assert sidecar.lower_tiers()[0].promoted == 4


def test_resting_sequences_make_room_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    wanted = plain_outputs(1, 4)
    with Sidecar(config_with_files(tmp_path, host_pages=16)) as sidecar:
        sequence, _ = open_text(sidecar, 1)
        assert_goes_on(sidecar, sequence, wanted[:2])
        with pytest.raises(HostPoolFull):
            sidecar.open(600, 200)
        sidecar.preempt(sequence)
        for forbidden in (
            lambda: sidecar.begin_step([(sequence, 1)], "decode"),
            lambda: sidecar.fork(sequence, 1, 1),
            lambda: sidecar.truncate(sequence, 1),
            lambda: sidecar.preempt(sequence),
        ):
            with pytest.raises(WrongState):
                forbidden()
        assert sidecar.tier_bytes(sequence).device == 0
        large = sidecar.open(600, 400)  # every page: the resting ones go to files
        assert sidecar.lower_tiers()[0].demoted == 5
        with pytest.raises(HostPoolFull):
            sidecar.resume(sequence)
        sidecar.close_sequence(large)
        assert sidecar.resume(sequence) == PROMPT + 2
        with pytest.raises(WrongState):
            sidecar.resume(sequence)
        assert_goes_on(sidecar, sequence, wanted[2:])
        sidecar.preempt(sequence)
        sidecar.close_sequence(sequence)
        with pytest.raises(StaleHandle):
            sidecar.resume(sequence)


def test_a_forks_partial_page_is_kept_for_both_while_they_rest(sidecar: Sidecar) -> None:
    wanted = plain_outputs(1, 2)
    parent, _ = open_text(sidecar, 1)
    child = sidecar.fork(parent, PROMPT, 50)
    for sequence in (parent, child):
        sidecar.preempt(sequence)
    sidecar.drain(10.0)
    for sequence in (child, parent):
        assert sidecar.resume(sequence) == PROMPT
        assert_goes_on(sidecar, sequence, wanted)


def test_another_tenant_finds_nothing_and_cannot_pass_its_share(sidecar: Sidecar) -> None:
    sidecar.add_tenant("a", 8)
    sidecar.add_tenant("b", 20)
    assert open_text(sidecar, 1, "a")[1] == 0
    assert open_text(sidecar, 1, "b")[1] == 0
    assert open_text(sidecar, 1, "b")[1] == 256
    assert sidecar.tenant_usage("a") == (8, 8)
    with pytest.raises(TierFull, match="need 6 pages, 0 free of 8"):
        open_text(sidecar, 3, "a")
    with pytest.raises(InvalidArgument, match="3 known"):
        open_text(sidecar, 1, "c")
    with pytest.raises(WrongState):
        sidecar.add_tenant("a")


def test_tokens_that_were_not_told_are_not_shared(sidecar: Sidecar) -> None:
    sequence, _ = sidecar.open_prompt(tokens(1, 0, PROMPT), 100)
    sidecar.begin_step([(sequence, PROMPT)], "prefill")
    for layer in range(sidecar.config.model.num_layers):
        sidecar.run_layer(layer, rows_of(sidecar.config, layer, 1, 0, PROMPT))
    sidecar.commit_step()
    assert sidecar.prefix_stats().pages == 0
    with pytest.raises(InvalidArgument, match="2 ids, the step has 1 rows"):
        sidecar.begin_step([(sequence, 1)], "decode", token_ids=[1, 2])


def test_an_aborted_step_shares_nothing_and_the_next_one_does(sidecar: Sidecar) -> None:
    sequence, _ = sidecar.open_prompt(tokens(1, 0, PROMPT), 100)
    ids = tokens(1, 0, PROMPT)
    sidecar.begin_step([(sequence, PROMPT)], "prefill", token_ids=ids)
    sidecar.run_layer(0, rows_of(sidecar.config, 0, 1, 0, PROMPT))
    sidecar.abort_step()
    assert sidecar.prefix_stats().pages == 0
    extend(sidecar, sequence, 1, PROMPT, "prefill")
    assert sidecar.prefix_stats().pages == 4


def test_a_sequence_goes_on_alone_after_a_cut_into_pages_that_others_have(
    sidecar: Sidecar,
) -> None:
    first, _ = open_text(sidecar, 1)
    second, _ = open_text(sidecar, 1)
    sidecar.truncate(second, 200)
    extend(sidecar, second, 30, 90, "prefill")
    assert open_text(sidecar, 1)[1] == 256
    wanted = plain_outputs(1, 1)
    assert_goes_on(sidecar, first, wanted)


def test_what_was_brought_back_is_of_one_sidecar_and_outlives_it(sidecar: Sidecar) -> None:
    with Sidecar(small_config()) as other:
        for each in (sidecar, other):
            sequence = each.open(64, 0)
            each.preempt(sequence)
        returning = other.bring_back(sequence, 1.0)
        assert returning.sequence == sequence
        with pytest.raises(WrongState, match="whose pages"):
            sidecar.finish_resume(returning)
        assert other.finish_resume(returning) == 0
        with pytest.raises(WrongState):
            other.finish_resume(returning)
        other.preempt(sequence)
        returning = other.bring_back(sequence, 1.0)
        other.let_go(returning)
        with pytest.raises(WrongState, match="held"):
            other.finish_resume(returning)
        returning = other.bring_back(sequence, 1.0)
    other.let_go(returning)
