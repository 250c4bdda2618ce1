"""Index rows of pages that outlive their sequence: loaded back, shared, pooled, never written."""

from collections.abc import Sequence

import pytest
import torch

from hisparse_kernels.index_rows import read_index_rows
from hisparse_sidecar._core import PageLease
from hisparse_sidecar.engine_rows.index_part import INDEX_LAYOUT
from tests.pipeline.engine_index_world import FIRST_PAGE, PAGE, SHIFT, IndexEngine


@pytest.fixture
def engine() -> IndexEngine:
    return IndexEngine()


def some_rows(engine: IndexEngine, tokens: int) -> torch.Tensor:
    """[tokens] int64, index rows of a prompt in pages that are in no order."""
    count = -(-tokens // PAGE)
    page = torch.randperm(FIRST_PAGE - 1, generator=engine.random)[:count] + 1
    pos = torch.arange(tokens)
    return (page[pos // PAGE] * PAGE + pos % PAGE).to(engine.device)


def check_loaded(
    engine: IndexEngine, leases: Sequence[PageLease], keys: Sequence[torch.Tensor]
) -> None:
    """What `load` brings to an engine's pages is these index rows, of each group."""
    rows = some_rows(engine, len(keys[0]))
    before = [pages.clone() for pages in engine.index.pages]
    engine.tier.cached.load(leases, rows + SHIFT)
    others = torch.ones(len(before[0]), dtype=torch.bool, device=engine.device)
    others[rows // PAGE] = False
    for pages, wanted, old in zip(engine.index.pages, keys, before, strict=True):
        assert torch.equal(read_index_rows(pages, rows, INDEX_LAYOUT), wanted)
        assert torch.equal(pages[others], old[others])


def open_on(
    engine: IndexEngine, leases: Sequence[PageLease], begun: Sequence[torch.Tensor], tokens: int
) -> int:
    """A sequence whose prompt begins with kept pages, which were loaded before its prefill."""
    prefix, rows = len(begun[0]), some_rows(engine, tokens)
    engine.tier.cached.load(leases, rows[:prefix] + SHIFT)
    own = engine.some_keys(tokens - prefix)
    engine.write(rows[prefix:], own)
    sequence = engine.tier.open(tokens, 200, leases)
    engine.tier.take_prompt(sequence, rows + SHIFT)
    engine.keys[sequence] = [torch.cat(both) for both in zip(begun, own, strict=True)]
    for pages in engine.index.pages:
        pages[:FIRST_PAGE] = 255
    return sequence


def test_kept_index_rows_are_loaded_byte_for_byte_when_their_sequence_is_gone(
    engine: IndexEngine,
) -> None:
    sequence = engine.open(150)
    for _ in range(50):  # the third page is full by what was decoded
        engine.step([sequence])
    lease, rest = engine.tier.cached.keep(sequence, 0, 1), engine.tier.cached.keep(sequence, 1, 2)
    engine.tier.close_sequence(sequence)
    engine.open(300)
    keys = [stored[: 3 * PAGE] for stored in engine.keys[sequence]]
    check_loaded(engine, [lease, rest], keys)
    check_loaded(engine, [rest], [stored[PAGE:] for stored in keys])


@pytest.mark.parametrize("name", ["hisa", "adaptive"])
def test_lists_on_a_prefix_are_those_of_keys_that_never_left(
    name: str, engine: IndexEngine
) -> None:
    first = engine.open(700)
    for _ in range(10):
        engine.step([first], name)
    kept = 11 * PAGE  # the last page is of the prompt and of what was decoded
    lease = engine.tier.cached.keep(first, 0, 11)
    begun = [stored[:kept] for stored in engine.keys[first]]
    second = open_on(engine, [lease], begun, kept + 1)
    third = open_on(engine, [lease], begun, kept + 130)
    engine.tier.check_integrity()
    for step in range(66):
        engine.step([first, third, second] if step % 3 else [second, third], name)
    engine.tier.check_integrity()
    for sequence in (first, second, third):
        engine.tier.close_sequence(sequence)
    check_loaded(engine, [lease], begun)
    lease.release()
    assert engine.tier.cached.num_free_pages == engine.config.host_pages
    stats = engine.tier.stats()
    assert (stats.window_slots_used, stats.pooled_keys_used, stats.table_blocks_used) == (0, 0, 0)


def test_index_rows_of_a_shared_page_are_not_written(engine: IndexEngine) -> None:
    first = engine.open(200)
    lease = engine.tier.cached.keep(first, 0, 3)
    host = engine.tier._host.on_cpu().index_pages
    before = [pages[torch.tensor(lease.pages)].clone() for pages in host]
    rows = some_rows(engine, 210)
    engine.write(rows, engine.some_keys(210))  # other rows than the pages have
    second = engine.tier.open(210, 40, [lease])
    engine.tier.take_prompt(second, rows + SHIFT)
    for pages, held in zip(host, before, strict=True):
        assert torch.equal(pages[torch.tensor(lease.pages)], held)
