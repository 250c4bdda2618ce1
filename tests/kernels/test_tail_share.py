"""`tail_share` against a plain loop over rows."""

import pytest
import torch

from hisparse_kernels.block_topm import block_topm
from hisparse_kernels.tail_share import tail_share
from tests.kernels.tail_shares import TOKENS, kept_rows

INF = float("inf")


def naive_share(positions: list[int], ids: list[int], scores: list[float], newest: int) -> float:
    """Sorts the kept blocks in plain Python."""
    least = torch.finfo(torch.float32).min

    def key(block: int) -> tuple[float, int]:
        score = scores[block]
        finite = least if score != score else min(max(score, least), -least)
        return (-INF if block in (0, newest) else -finite), block

    kept = sorted((block for block in ids if block >= 0), key=key)
    worst = set(kept[len(kept) - len(kept) // 4 :])
    chosen = [position for position in positions if position >= 0]
    found = sum(position // TOKENS in worst for position in chosen)
    return (torch.tensor(float(found)) / max(len(chosen), 1)).item()


@pytest.mark.parametrize("kind", ["random", "ties", "constant", "not_finite"])
@pytest.mark.parametrize("kept", [2, 3, 4, 7, 16, 33, 300])
def test_the_share_is_what_a_plain_loop_counts(kind: str, kept: int) -> None:
    scores, newest, ids, positions = kept_rows(kind, kept)

    share, needs_more = tail_share(positions, ids, scores, newest, TOKENS, 0.2)

    for row, last in enumerate(newest.tolist()):
        wanted = naive_share(positions[row].tolist(), ids[row].tolist(), scores[row].tolist(), last)
        assert share[row].item() == wanted
        left_out = last + 1 > min(kept, last + 1)
        assert needs_more[row].item() == (wanted > torch.tensor(0.2).item() and left_out)
    assert needs_more.any() == (share[newest >= kept] > 0.2).any()


def test_cases_have_rows_of_both_kinds() -> None:
    scores, newest, ids, positions = kept_rows("random", 16)
    _, needs_more = tail_share(positions, ids, scores, newest, TOKENS, 0.2)
    assert 0 < needs_more.sum() < (newest >= 0).sum()


def test_the_worst_quarter_of_tied_blocks_are_those_of_the_highest_ids() -> None:
    ids = torch.arange(8, dtype=torch.int32)[None]
    newest = torch.tensor([9], dtype=torch.int32)
    for block, wanted in ((5, 0.0), (6, 1.0), (7, 1.0), (0, 0.0)):
        positions = torch.tensor([[block * TOKENS]], dtype=torch.int32)
        share, needs_more = tail_share(positions, ids, torch.zeros(1, 10), newest, TOKENS, 0.5)
        assert (share.item(), needs_more.item()) == (wanted, wanted > 0)


def test_a_share_at_the_limit_needs_no_more() -> None:
    ids, newest = torch.arange(4, dtype=torch.int32)[None], torch.tensor([9], dtype=torch.int32)
    scores = torch.tensor([[0.0, 3, 2, 1, 0, 0, 0, 0, 0, 0]])
    positions = torch.tensor([[0, 1, 2, 3 * TOKENS]], dtype=torch.int32)
    for limit, wanted in ((0.25, False), (0.24, True)):
        share, needs_more = tail_share(positions, ids, scores, newest, TOKENS, limit)
        assert (share.item(), needs_more.item()) == (0.25, wanted)


def test_a_row_that_kept_all_its_blocks_needs_no_more() -> None:
    scores = torch.arange(4.0).flip(0)[None]
    positions = torch.full((1, 3), 2 * TOKENS, dtype=torch.int32)
    newest = torch.tensor([3], dtype=torch.int32)
    ids = block_topm(scores, newest, 6)

    share, needs_more = tail_share(positions, ids, scores, newest, TOKENS, 0.0)

    assert (share.item(), needs_more.item()) == (1.0, False)


def test_results_are_written_to_the_callers_tensors() -> None:
    scores, newest, ids, positions = kept_rows("random", 16)
    out = torch.full((len(ids),), 7.0), torch.zeros(len(ids), dtype=torch.bool)
    found = tail_share(positions, ids, scores, newest, TOKENS, 0.2, out=out)
    wanted = tail_share(positions, ids, scores, newest, TOKENS, 0.2)
    for one, place, other in zip(found, out, wanted, strict=True):
        assert one is place
        assert torch.equal(one, other)
