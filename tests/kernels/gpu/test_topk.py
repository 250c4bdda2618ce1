from collections.abc import Callable

import pytest
import torch

from accuracy import assert_bits_equal
from cases import on
from hisparse_kernels.gpu.topk import (
    candidate_positions_triton,
    topk_positions_triton,
    topk_triton,
)
from hisparse_kernels.topk import candidate_positions_ref, topk_ref
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay

INF = float("inf")
LEAST = torch.finfo(torch.float32).min


def rows_of(kind: str, rows: int, columns: int) -> torch.Tensor:
    torch.manual_seed(0)
    noise = torch.randn(rows, columns)
    return {
        "random": noise,
        "relu_skewed": noise.relu() * (torch.rand(rows, columns) < 0.1),
        "few_values": torch.randint(-2, 3, (rows, columns)).float(),
        "constant": torch.full((rows, columns), 0.5),
        "signed_zeros": torch.where(noise > 0, 0.0, -0.0),
        "one_ulp_apart": (torch.arange(columns) + 2**30).int().view(torch.float32).expand(rows, -1),
        "all_magnitudes": noise * 10.0 ** torch.randint(-40, 38, (rows, columns)),
        "negative": -noise.abs() - 1e30,
        "half_masked": noise.masked_fill(torch.rand(rows, columns) < 0.5, -INF),
        "all_masked": torch.full((rows, columns), -INF),
        "with_plus_inf": noise.masked_fill(torch.rand(rows, columns) < 0.1, INF),
        "lowest_floats": torch.where(noise > 0, LEAST, -INF),
    }[kind]


KINDS = (
    "random",
    "relu_skewed",
    "few_values",
    "constant",
    "signed_zeros",
    "one_ulp_apart",
    "all_magnitudes",
    "negative",
    "half_masked",
    "all_masked",
    "with_plus_inf",
    "lowest_floats",
)


def poisoned(rows: int, k: int, device: str) -> torch.Tensor:
    return torch.full((rows, k), 12345, dtype=torch.int32, device=device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "columns", "k"),
    [
        (1, 1, 1),
        (2, 255, 256),
        (3, 256, 17),
        (2, 257, 257),
        (1, 257, 1000),
        (2, 1500, 1),
        (0, 5, 3),
    ],
)
def test_columns_are_the_references(
    kind: str, rows: int, columns: int, k: int, device: str
) -> None:
    logits, out = rows_of(kind, rows, columns), poisoned(rows, k, device)

    assert topk_triton(logits.to(device), k, out=out) is out

    assert_bits_equal(out.cpu(), topk_ref(logits, k))


@pytest.mark.parametrize("kind", ["random", "relu_skewed", "half_masked", "constant"])
def test_rows_of_several_blocks_give_the_references_columns(kind: str, device: str) -> None:
    logits = rows_of(kind, 1, 8193)

    columns = topk_triton(logits.to(device), 2048)

    assert_bits_equal(columns.cpu(), topk_ref(logits, 2048))


def test_rows_of_no_columns_give_padding(device: str) -> None:
    columns = topk_triton(torch.empty(3, 0, device=device), 2, out=poisoned(3, 2, device))

    assert_bits_equal(columns.cpu(), torch.full((3, 2), -1).int())


VIEWS = {
    "every third column": lambda wide: wide[:4, ::3],
    "columns of a wider tensor": lambda wide: wide[:4, 7:290],
    "transposed": lambda wide: wide[:, :3].T,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_logits_are_read_by_their_strides(
    view: Callable[[torch.Tensor], torch.Tensor], device: str
) -> None:
    wide = rows_of("random", 300, 600)

    columns = topk_triton(view(wide.to(device)), 50)

    assert_bits_equal(columns.cpu(), topk_ref(view(wide), 50))


@pytest.mark.parametrize(("rows", "k", "m", "block_tokens"), [(3, 70, 4, 64), (2, 1500, 9, 192)])
def test_positions_of_columns_are_the_references(
    rows: int, k: int, m: int, block_tokens: int, device: str
) -> None:
    torch.manual_seed(0)
    columns = torch.randint(-1, m * block_tokens, (rows, k)).int()
    blocks = torch.randint(0, 2**31 // block_tokens - 1, (rows, m)).int()
    expected = candidate_positions_ref(columns, blocks, block_tokens)
    in_place = columns.to(device)

    out = poisoned(rows, k, device)
    found = candidate_positions_triton(columns.to(device), blocks.to(device), block_tokens, out=out)
    candidate_positions_triton(in_place, blocks.to(device), block_tokens, out=in_place)

    assert found is out
    assert_bits_equal(found.cpu(), expected)
    assert_bits_equal(in_place.cpu(), expected)


@pytest.mark.parametrize("m", [3, 70])  # in one program, and as a tree
def test_columns_take_the_names_of_their_blocks(m: int, device: str) -> None:
    logits, k = rows_of("random", 2, m * 128), 90
    blocks, named = torch.arange(m).int().expand(2, -1), torch.randint(0, 999, (2, m)).int()
    blocks = blocks.clone()
    blocks[1] = -1  # so nobody has written its logits, whatever its names are
    expected = candidate_positions_ref(topk_ref(logits[:1], k), named[:1], 128)

    out = poisoned(2, k, device)
    found = topk_positions_triton(*on(device, logits, blocks, named), 128, k, out)

    assert_bits_equal(found[:1].cpu(), expected)
    assert found[1].tolist() == [-1] * k


def test_columns_and_blocks_are_read_by_their_strides(device: str) -> None:
    torch.manual_seed(0)
    columns = torch.randint(-1, 5 * 64, (40, 6)).int()  # of three rows of 40
    blocks = torch.randint(0, 999, (3, 10)).int()

    args = columns.to(device)[:, ::2].T, blocks.to(device)[:, 1::2]
    found = candidate_positions_triton(*args, 64)

    expected = candidate_positions_ref(columns[:, ::2].T, blocks[:, 1::2], 64)
    assert_bits_equal(found.cpu(), expected)


@pytest.mark.parametrize(("rows", "k"), [(0, 3), (2, 0)])
def test_no_columns_have_no_positions(rows: int, k: int, device: str) -> None:
    columns, blocks = torch.zeros(rows, k).int(), torch.zeros(rows, 4).int()

    assert candidate_positions_triton(*on(device, columns, blocks), 64).shape == (rows, k)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [8191, 8192, 8193, 131072, 1048577])
def test_production_rows_give_the_references_columns_twenty_times(kind: str, columns: int) -> None:
    logits = rows_of(kind, 3, columns)
    expected = topk_ref(logits, 2048).cuda()
    on_gpu = logits.cuda()

    for _ in range(20):
        assert torch.equal(topk_triton(on_gpu, 2048, out=poisoned(3, 2048, "cuda")), expected)


@pytest.mark.gpu
def test_a_prefill_chunk_of_rows_gives_the_references_columns() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4096, 8192, device="cuda").relu_()
    logits[17], logits[4095, 100:] = -INF, -INF

    assert_bits_equal(topk_triton(logits, 2048), topk_ref(logits, 2048))


@pytest.mark.gpu
def test_logits_beyond_two_to_the_31_elements_are_addressed() -> None:
    rows, columns = 16400, 131072
    logits = torch.zeros(rows, columns, device="cuda")
    logits[-1] = rows_of("random", 1, columns).cuda()[0]

    found = topk_triton(logits, 2048)

    assert_bits_equal(found[[0, -1]], topk_ref(logits[[0, -1]], 2048))


@pytest.mark.gpu
def test_a_graph_follows_new_logits_and_allocates_nothing() -> None:
    logits, new = rows_of("random", 4, 8192), rows_of("half_masked", 4, 8192)
    new[1], new[2, 9:] = -INF, -INF
    blocks, new_blocks = (torch.randperm(999)[:256].view(4, 64).int() for _ in range(2))
    held, held_blocks, out = logits.cuda(), blocks.cuda(), poisoned(4, 2048, "cuda")

    def call() -> None:
        topk_triton(held, 2048, out=out)
        candidate_positions_triton(out, held_blocks, 128, out=out)

    replay(call, (held, held_blocks), (new, new_blocks))

    expected = candidate_positions_ref(topk_ref(new, 2048), new_blocks, 128)
    assert_bits_equal(out.cpu(), expected)
    assert_allocates_nothing(call)
