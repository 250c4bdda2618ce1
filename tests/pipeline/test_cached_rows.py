"""Pages that outlive their sequence: loaded back byte for byte, shared, and never written."""

import pytest
import torch

from hisparse_sidecar.errors import HostPoolFull, InvalidArgument
from tests.pipeline.test_engine_rows import CONFIG, PROMPT_ROW, Engine

PAGE = 64


def loaded(engine: Engine, leases: list, count: int) -> torch.Tensor:
    """[layers, count, row_bytes], the kept rows, brought to rows of the engine in no order."""
    at = torch.randperm(512, generator=engine.random)[:count] + PROMPT_ROW
    at = at.to(engine.device)
    engine.tier.cached.load(leases, at)
    return torch.stack([layer[at] for layer in engine.memory])


def test_kept_pages_are_loaded_byte_for_byte_when_their_sequence_is_gone() -> None:
    engine = Engine()
    sequence = engine.open(150, 60)
    for _ in range(50):
        engine.step([sequence])
    lease, rest = engine.tier.cached.keep(sequence, 0, 1), engine.tier.cached.keep(sequence, 1, 2)
    engine.tier.close_sequence(sequence)
    engine.open(300)
    rows = engine.rows[sequence][:, : 3 * PAGE]
    assert torch.equal(loaded(engine, [lease, rest], 3 * PAGE), rows)
    assert torch.equal(loaded(engine, [rest], 2 * PAGE), rows[:, PAGE:])


def test_a_prompt_on_a_prefix_copies_its_own_rows_alone() -> None:
    engine = Engine()
    first = engine.open(200)
    lease = engine.tier.cached.keep(first, 0, 3)
    engine.tier.close_sequence(first)
    free = engine.tier.stats().host_pages_free
    second = engine.tier.open(210, 40, [lease])
    assert free - engine.tier.stats().host_pages_free == 4 - 3
    at = (torch.randperm(512, generator=engine.random)[:210] + PROMPT_ROW).to(engine.device)
    for layer, memory in enumerate(engine.memory):
        memory[at[: 3 * PAGE]] = engine.rows[first][layer][: 3 * PAGE]
    engine.rows[second] = torch.stack([layer[at] for layer in engine.memory])
    for layer in engine.memory[:1]:  # a shared page is not written: else these bytes would be in it
        layer[at[:10]] = 0
    engine.tier.take_prompt(second, at)
    for layer in engine.memory:
        layer[at] = 0
    for _ in range(40):
        engine.step([second])
    engine.tier.check_integrity()
    kept = engine.rows[first][:, : 3 * PAGE]
    assert torch.equal(loaded(engine, [lease], 3 * PAGE), kept)
    engine.tier.close_sequence(second)
    lease.release()
    assert engine.tier.cached.num_free_pages == CONFIG.host_pages


def test_sequences_on_one_prefix_do_not_see_each_other() -> None:
    engine = Engine()
    first = engine.open(130)
    lease = engine.tier.cached.keep(first, 0, 2)
    others = []
    for _ in range(2):
        made = engine.tier.open(150, 60, [lease])
        at = (torch.randperm(512, generator=engine.random)[:150] + PROMPT_ROW).to(engine.device)
        for layer, memory in enumerate(engine.memory):
            memory[at[: 2 * PAGE]] = engine.rows[first][layer][: 2 * PAGE]
        engine.rows[made] = torch.stack([layer[at] for layer in engine.memory])
        engine.tier.take_prompt(made, at)
        others.append(made)
    for _ in range(38):
        engine.step([first, *others])
    engine.tier.check_integrity()
    assert torch.equal(loaded(engine, [lease], 2 * PAGE), engine.rows[first][:, : 2 * PAGE])


def test_what_does_not_fit_is_refused_and_holds_nothing() -> None:
    engine = Engine()
    first = engine.open(200)
    with pytest.raises(InvalidArgument, match=r"pages to share: found 4, needed 0 to 3"):
        engine.tier.cached.keep(first, 0, 4)
    lease = engine.tier.cached.keep(first, 0, 3)
    with pytest.raises(InvalidArgument, match="10 rows for 3 pages, needs 192"):
        engine.tier.cached.load([lease], torch.arange(10, device=engine.device))
    with pytest.raises(InvalidArgument, match="pages of the prefix: found 3, needed 0 to 2"):
        engine.tier.open(191, 10, [lease])
    engine.tier.close_sequence(first)
    other = engine.open(300)
    beside = engine.tier.cached.keep(other, 0, 4)
    engine.tier.close_sequence(other)
    engine.open(500, 100)
    free = engine.tier.cached.num_free_pages
    with pytest.raises(HostPoolFull, match=f"need 7 pages, {free} free"):
        engine.tier.open(200, 400, [lease])
    assert engine.tier.cached.num_free_pages == free == 20 - 3 - 4 - 10
    engine.tier.check_integrity()
    beside.release()
