import pytest
import torch

from accuracy import assert_bits_equal
from hisparse_kernels.block_topm import block_topm_ref
from hisparse_kernels.gpu.block_topm import block_topm_triton
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay

INF = float("inf")


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def scores_of(kind: str, rows: int, blocks: int) -> torch.Tensor:
    torch.manual_seed(0)
    noise = torch.randn(rows, blocks)
    return {
        "random": noise,
        "ties": torch.randint(-1, 2, (rows, blocks)).float(),
        "constant": torch.full((rows, blocks), -3.0),
        "not_finite": noise.masked_fill(noise > 1, INF).masked_fill(noise < -1, torch.nan),
        "all_lowest": torch.full((rows, blocks), -INF),
    }[kind]


def poisoned(rows: int, kept: int, device: str) -> torch.Tensor:
    return torch.full((rows, kept), 12345, dtype=torch.int32, device=device)


@pytest.mark.parametrize("kind", ["random", "ties", "constant", "not_finite", "all_lowest"])
@pytest.mark.parametrize(
    ("blocks", "kept"), [(0, 2), (1, 2), (255, 2), (256, 64), (257, 300), (1000, 64)]
)
def test_kept_blocks_are_the_references(kind: str, blocks: int, kept: int, device: str) -> None:
    newest = int32(0, blocks - 1, blocks // 2, -1, min(kept - 1, blocks - 1), blocks + 5)
    scores, out = scores_of(kind, 6, blocks), poisoned(6, kept, device)

    assert block_topm_triton(scores.to(device), newest.to(device), kept, out=out) is out

    assert_bits_equal(out.cpu(), block_topm_ref(scores, newest, kept))


def test_rows_of_several_blocks_of_scores_keep_the_references_blocks(device: str) -> None:
    scores, newest = scores_of("not_finite", 2, 8200), int32(8195, -1)

    found = block_topm_triton(scores.to(device), newest.to(device), 64)

    assert_bits_equal(found.cpu(), block_topm_ref(scores, newest, 64))


def test_scores_after_the_newest_block_are_not_looked_at(device: str) -> None:
    scores, newest = scores_of("random", 3, 700), int32(5, 300, 698)
    spoiled = scores.clone()
    for row, last in enumerate(newest.tolist()):
        spoiled[row, last:] = torch.tensor([INF, torch.nan]).repeat(350)[: 700 - last]

    found = block_topm_triton(spoiled.to(device), newest.to(device), 64)

    assert_bits_equal(found.cpu(), block_topm_ref(scores, newest, 64))


def test_the_first_and_the_newest_block_are_kept_whatever_they_score(device: str) -> None:
    scores = torch.arange(900.0)[None].repeat(2, 1)
    scores[:, 899] = torch.nan  # the open block has no score

    found = block_topm_triton(scores.to(device), int32(899, 400).to(device), 4).cpu()

    assert found.tolist() == [[0, 897, 898, 899], [0, 398, 399, 400]]


def test_scores_are_read_by_their_strides(device: str) -> None:
    wide, newest = scores_of("random", 4, 900), int32(299, 299, 12, 100)

    found = block_topm_triton(wide.to(device)[:, ::3], newest.to(device), 32)

    assert_bits_equal(found.cpu(), block_topm_ref(wide[:, ::3], newest, 32))


def test_no_rows_keep_nothing(device: str) -> None:
    found = block_topm_triton(torch.empty(0, 9, device=device), int32().to(device), 4)

    assert found.shape == (0, 4)


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "blocks"), [(4096, 512), (64, 1024), (3, 8192), (2, 8193)])
@pytest.mark.parametrize("kind", ["random", "ties", "not_finite"])
def test_production_rows_keep_the_references_blocks_twenty_times(
    kind: str, rows: int, blocks: int
) -> None:
    scores = scores_of(kind, rows, blocks)
    newest = (torch.arange(rows) * 37 % blocks).int()
    expected = block_topm_ref(scores, newest, 64).cuda()
    args = scores.cuda(), newest.cuda(), 64

    for _ in range(20):
        assert torch.equal(block_topm_triton(*args, out=poisoned(rows, 64, "cuda")), expected)


@pytest.mark.gpu
def test_a_graph_follows_new_scores_and_lengths_and_allocates_nothing() -> None:
    scores, new = scores_of("random", 4, 1024), scores_of("ties", 4, 1024)
    newest, new_newest = int32(3, -1, -1, 1023), int32(1023, 80, -1, 0)
    held, held_newest, out = scores.cuda(), newest.cuda(), poisoned(4, 64, "cuda")

    def call() -> None:
        block_topm_triton(held, held_newest, 64, out=out)

    replay(call, (held, held_newest), (new, new_newest))

    assert_bits_equal(out.cpu(), block_topm_ref(new, new_newest, 64))
    assert_allocates_nothing(call)
