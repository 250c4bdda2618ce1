import pytest
import torch

from hisparse_kernels.block_topm import block_topm
from hisparse_kernels.topk import candidate_positions, topk

INF = float("inf")


def naive_topk(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Sorts (value descending, column ascending) in plain Python."""
    rows = []
    for row in logits.tolist():
        order = sorted((c for c in range(len(row)) if row[c] > -INF), key=lambda c: (-row[c], c))
        kept = sorted(order[:k])
        rows.append(kept + [-1] * (k - len(kept)))
    return torch.tensor(rows, dtype=torch.int32).view(len(logits), k)


def rows_of(kind: str, rows: int, columns: int) -> torch.Tensor:
    torch.manual_seed(0)
    noise = torch.randn(rows, columns)
    return {
        "random": noise,
        "relu_skewed": noise.relu() * (torch.rand(rows, columns) < 0.1),
        "few_values": torch.randint(-2, 3, (rows, columns)).float(),
        "constant": torch.full((rows, columns), 0.5),
        "signed_zeros": torch.where(noise > 0, 0.0, -0.0),
        "negative": -noise.abs() - 1e30,
        "half_masked": noise.masked_fill(torch.rand(rows, columns) < 0.5, -INF),
        "all_masked": torch.full((rows, columns), -INF),
        "with_plus_inf": noise.masked_fill(torch.rand(rows, columns) < 0.1, INF),
        "lowest_floats": torch.full((rows, columns), torch.finfo(torch.float32).min),
    }[kind]


KINDS = [
    "random",
    "relu_skewed",
    "few_values",
    "constant",
    "signed_zeros",
    "negative",
    "half_masked",
    "all_masked",
    "with_plus_inf",
    "lowest_floats",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "columns", "k"),
    [(1, 1, 1), (3, 63, 64), (2, 64, 64), (5, 65, 64), (4, 500, 17), (1, 1000, 999), (7, 12, 1)],
)
def test_topk_matches_a_plain_sort(kind: str, rows: int, columns: int, k: int) -> None:
    logits = rows_of(kind, rows, columns)

    assert torch.equal(topk(logits, k), naive_topk(logits, k))


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (3, 0), (0, 0)])
def test_topk_of_nothing_is_padding(rows: int, columns: int) -> None:
    assert torch.equal(topk(torch.zeros(rows, columns), 2), torch.full((rows, 2), -1).int())


def test_topk_of_mixed_rows_is_what_each_row_gives_alone() -> None:
    logits = torch.cat([rows_of(kind, 3, 200) for kind in KINDS])
    together = topk(logits, 64)

    for row in range(len(logits)):
        assert torch.equal(topk(logits[row : row + 1], 64)[0], together[row])


def test_topk_reads_non_contiguous_logits() -> None:
    logits = torch.randn(4, 600)[:, ::3]

    assert torch.equal(topk(logits, 20), naive_topk(logits, 20))


def test_columns_are_written_to_the_callers_tensor() -> None:
    logits, newest = torch.randn(3, 30), torch.tensor([29, -1, 4]).int()
    columns = topk(logits, 8)
    block_ids = torch.tensor([[0, 2], [1, 5], [3, -1]]).int()

    for call, args in (
        (topk, (logits, 8)),
        (block_topm, (logits, newest, 8)),
        (candidate_positions, (columns, block_ids, 16)),
    ):
        out = torch.full((3, 8), 77, dtype=torch.int32)
        assert call(*args, out=out) is out
        assert torch.equal(out, call(*args))


def test_candidate_positions_are_block_start_plus_offset() -> None:
    columns = torch.tensor([[0, 63, 64, 130, -1], [-1, -1, -1, -1, -1]]).int()
    block_ids = torch.tensor([[0, 5, 9], [0, -1, -1]]).int()

    positions = candidate_positions(columns, block_ids, 64)

    assert positions.tolist() == [[0, 63, 320, 578, -1], [-1] * 5]
    assert positions.dtype == torch.int32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_kept", [2, 3, 16, 64, 200])
def test_block_topm_keeps_first_newest_and_the_best_of_the_others(kind: str, num_kept: int) -> None:
    logits = rows_of(kind, 9, 100)
    newest = torch.tensor([-1, 0, 1, 2, 15, 16, 63, 98, 99]).int()

    kept = block_topm(logits, newest, num_kept)

    for row, last in enumerate(newest.tolist()):
        others = sorted(range(1, last), key=lambda b: (-logits[row, b].item(), b))
        forced = sorted({0, last}) if last >= 0 else []
        expected = sorted(forced + others[: max(num_kept - len(forced), 0)])
        assert kept[row].tolist() == expected + [-1] * (num_kept - len(expected))


def test_block_topm_keeps_all_blocks_where_they_are_few_enough() -> None:
    logits = torch.full((3, 8), -INF)
    newest = torch.tensor([7, 3, 0]).int()

    assert block_topm(logits, newest, 8).tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3, -1, -1, -1, -1],
        [0, -1, -1, -1, -1, -1, -1, -1],
    ]


def test_block_topm_never_looks_at_blocks_after_the_newest() -> None:
    logits = torch.randn(2, 50)
    newest = torch.tensor([20, 31]).int()
    poisoned = logits.clone()
    poisoned[0, 21:], poisoned[1, 32:] = torch.nan, INF
    poisoned[0, 20], poisoned[1, 31] = torch.nan, -INF  # the open block has no pooled score

    assert torch.equal(block_topm(poisoned, newest, 7), block_topm(logits, newest, 7))
