"""Blocks by ratio, and adaptive ones: what HISA gives with the m that each row ends with."""

from dataclasses import replace

import pytest
import torch

from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.selection import IndexKeys, KeptBlocks, SelectionQuery, selector_for
from hisparse_sidecar.selection.adaptive import AdaptiveHisaSelector
from hisparse_sidecar.selection.flat import FlatSelector
from hisparse_sidecar.selection.hisa import HisaSelector
from hisparse_sidecar.selection.ratio import RatioHisaSelector
from hisparse_sidecar.tuning.resident_keys import ResidentKeys
from tests.pipeline.stored_keys import BLOCK_TOKENS, HEADS, LENGTH, one_row, query_of, stored_keys

KINDS = ["random", "coherent", "tied"]


def last_budget(query: SelectionQuery, keys: IndexKeys, selector: AdaptiveHisaSelector) -> int:
    """The m of a row alone, found one HISA after the other."""
    blocks = int(query.row_pos) // BLOCK_TOKENS + 1
    kept = selector.num_kept_blocks
    while kept < min(selector.max_blocks, blocks):
        of_row = keys.best_blocks(query, kept)
        found = keys.best_tokens(query, of_row, query.topk)
        if not keys.needs_more(query, found, of_row, selector.tail_share).item():
            break
        kept = min(2 * kept, selector.max_blocks)
    return kept


def assert_rows_end_as_hisa(
    query: SelectionQuery, keys: ResidentKeys, selector: AdaptiveHisaSelector
) -> None:
    """Every row equals HISA with its last m, and the counts say how the rows got there."""
    found = selector.select(query, keys)

    ended = []
    for row, position in enumerate(query.row_pos.tolist()):
        if position < 0:
            assert (found[row] == -1).all()
            continue
        ended.append(last_budget(one_row(query, row), keys, selector))
        wanted = HisaSelector(ended[-1]).select(one_row(query, row), keys)
        assert torch.equal(found[row], wanted[0]), f"row {row}, m {ended[-1]}"
    kept = selector.num_kept_blocks
    assert keys.counts.doubled_rows == sum(m > kept for m in ended)
    assert keys.counts.doublings == sum(selector.widths(10**6).index(m) for m in ended)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("kept", "most", "share"), [(4, 32, 0.1), (4, 11, 0.0), (5, 100, 0.3)])
def test_each_row_gets_hisa_with_the_budget_that_it_ends_with(
    kind: str, kept: int, most: int, share: float
) -> None:
    selector = AdaptiveHisaSelector(kept, most, share)
    assert_rows_end_as_hisa(query_of(), stored_keys(kind), selector)


@pytest.mark.interpreted
def test_budgets_of_a_few_rows_double_in_either_backend() -> None:
    keys, query = stored_keys("tied"), query_of((LENGTH - 1, -1, 447))
    assert_rows_end_as_hisa(query, keys, AdaptiveHisaSelector(4, 16, 0.1))
    assert keys.counts.doublings


def test_the_rows_of_the_cases_end_with_different_budgets() -> None:
    keys, query = stored_keys(), query_of()
    selector = AdaptiveHisaSelector(4, 32, 0.1)
    rows = [row for row, at in enumerate(query.row_pos.tolist()) if at >= 0]

    ended = {last_budget(one_row(query, row), keys, selector) for row in rows}

    assert {4, 32} < ended


def test_a_row_has_the_same_budget_beside_longer_sequences_and_alone() -> None:
    short = replace(stored_keys(), num_tokens=20 * BLOCK_TOKENS)
    query, selector = query_of((20 * BLOCK_TOKENS - 1, 700, 1100)), AdaptiveHisaSelector(4, 64, 0.1)

    found = selector.select(query, stored_keys())

    # the slots of sequence 1 begin elsewhere, so only rows of sequence 0 are the same
    rows = slice(0, 3, 2)
    alone = selector.select(query.rows(rows).contiguous(), short)
    assert torch.equal(found[rows], alone)


def test_a_wider_pass_scores_the_blocks_of_the_rows_that_need_it_alone() -> None:
    keys, query = stored_keys(), query_of()
    scored: list[torch.Tensor] = []
    choose = keys.best_tokens

    def watched(query: SelectionQuery, blocks: KeptBlocks, topk: int) -> torch.Tensor:
        scored.append(blocks.ids)
        return choose(query, blocks, topk)

    keys.best_tokens = watched  # type: ignore[method-assign]
    AdaptiveHisaSelector(4, 32, 0.1).select(query, keys)

    assert [ids.shape[1] for ids in scored] == [4, 8, 16, 32]
    going_on = [int((ids >= 0).any(1).sum()) for ids in scored]
    assert going_on[1:] == sorted(going_on[1:], reverse=True)
    assert sum(going_on[1:]) == keys.counts.doublings
    assert going_on[0] > going_on[-1] > 0
    padding = query.row_pos < 0
    assert all((ids[padding] == -1).all() for ids in scored)


def test_rows_that_would_double_beyond_the_limit_are_counted() -> None:
    keys, query = stored_keys(), query_of()

    AdaptiveHisaSelector(4, 4, 0.0).select(query, keys)

    assert (keys.counts.doubled_rows, keys.counts.doublings) == (0, 0)
    blocks = keys.best_blocks(query, 4)
    found = keys.best_tokens(query, blocks, query.topk)
    wanted = int(keys.needs_more(query, found, blocks, 0.0).sum())
    assert keys.counts.capped_rows == wanted > 0


@pytest.mark.parametrize(("kept", "most", "blocks", "wanted"), [
    (64, 256, 5000, [64, 128, 256]),
    (64, 200, 5000, [64, 128, 200]),
    (64, 64, 5000, [64]),
    (64, 256, 100, [64, 100]),
    (64, 256, 10, [10]),
])  # fmt: skip
def test_passes_follow_from_the_limits_alone(
    kept: int, most: int, blocks: int, wanted: list[int]
) -> None:
    assert AdaptiveHisaSelector(kept, most, 0.05).widths(blocks) == wanted


def test_adaptive_with_room_for_every_block_equals_flat_where_it_always_doubles() -> None:
    keys, query = stored_keys(), query_of()
    selector = AdaptiveHisaSelector(4, 1000, 0.0)
    found, flat = selector.select(query, keys), FlatSelector().select(query, keys)
    ended = [
        last_budget(one_row(query, row), keys, selector)
        for row, position in enumerate(query.row_pos.tolist())
        if position >= 0
    ]
    rows = [row for row, position in enumerate(query.row_pos.tolist()) if position >= 0]
    blocks = [int(query.row_pos[row]) // BLOCK_TOKENS + 1 for row in rows]
    whole = [row for row, m, own in zip(rows, ended, blocks, strict=True) if m >= own]
    assert whole
    assert torch.equal(found[whole], flat[whole])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("kept", "most"), [(2, 8), (4, 100), (9, 9)])
def test_a_quarter_of_its_own_blocks_is_kept_for_each_row(kind: str, kept: int, most: int) -> None:
    keys, query = stored_keys(kind), query_of()

    found = RatioHisaSelector(kept, most).select(query, keys)

    for row, position in enumerate(query.row_pos.tolist()):
        blocks = position // BLOCK_TOKENS + 1
        own = min(max(kept, -(-blocks // 4)), most)
        wanted = HisaSelector(own).select(one_row(query, row), keys)
        assert torch.equal(found[row], wanted[0])


def test_budgets_are_chosen_by_the_configuration() -> None:
    def chosen(**settings: object) -> object:
        return selector_for(SelectionConfig("hisa", **settings))  # type: ignore[arg-type]

    assert chosen() == HisaSelector(64)
    assert chosen(budget="ratio", max_blocks=99) == RatioHisaSelector(64, 99)
    wanted = AdaptiveHisaSelector(64, 256, 0.05)
    assert chosen(budget="adaptive") == wanted


@pytest.mark.parametrize("selector", [
    AdaptiveHisaSelector(64, 256, 0.05), RatioHisaSelector(64, 256), HisaSelector(64)
])  # fmt: skip
def test_a_short_sequence_is_not_held_beyond_its_blocks(selector: AdaptiveHisaSelector) -> None:
    assert selector.scored_blocks(LENGTH // BLOCK_TOKENS) == LENGTH // BLOCK_TOKENS


@pytest.mark.parametrize("stages", ["blocks", "tokens", "both"])
def test_routed_heads_score_the_stages_that_are_asked_for(stages: str) -> None:
    keys, query = stored_keys("coherent"), query_of()
    selection = SelectionConfig("hisa", 4, routed_heads=2, routed_stages=stages, gate="off")  # type: ignore[arg-type]
    few = query.with_heads(keys.routed_heads(query, 2))

    found = selector_for(selection).select(query, keys)

    blocks = keys.best_blocks(query if stages == "tokens" else few, 4)
    wanted = keys.best_tokens(query if stages == "blocks" else few, blocks, query.topk)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, HisaSelector(4).select(query, keys))


def test_all_heads_routed_are_hisa() -> None:
    keys, query = stored_keys(), query_of()

    found = HisaSelector(4, HEADS, routes_blocks=True, routes_tokens=True).select(query, keys)

    assert torch.equal(found, HisaSelector(4).select(query, keys))
