"""The backend `flash_mla` on a GPU: FlashMLA's kernels against the reference in fp32."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from accuracy import Tolerance, assert_bits_equal, assert_near, assert_near_largest
from hisparse_kernels.gpu import sparse_mla_flash
from hisparse_kernels.gpu.sparse_mla_flash import sparse_mla_flash as attend
from hisparse_kernels.sparse_mla import AttentionOptions
from tests.kernels.gpu.attention import BF16, BF16_SUMS, SCALE, Attention, Results, attention
from tests.kernels.gpu.flash_pools import in_pool
from tests.kernels.gpu.graphs import replay

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_flash_mla")]
HEADS = pytest.mark.parametrize("heads", [64, 128])
# FlashMLA's own tests: relative 8.01 / 65536; a logarithm near 0 has no relative error
LSE = Tolerance(absolute=2e-5, relative=8.01 / 65536, diff=1e-8)


def decode_case(rows: int, heads: int, topk: int = 512, multiple: int = 64) -> Attention:
    """A list of each row with a fifth of -1, the last row's of nothing else, if it is not alone."""
    case = attention(rows, heads, topk)
    if rows > 1:
        case.row_ids[-1] = -1
    return in_pool(case, multiple)


def counts_of(case: Attention) -> torch.Tensor:
    rows, topk = case.row_ids.shape
    counts = torch.randint(0, topk + 1, (rows,)).int()
    counts[0] = topk - 1
    return counts


def assert_matches(found: Results, wanted: Results) -> None:
    out, lse = (result.cpu() for result in found)
    assert_near_largest(out.float(), wanted[0], BF16_SUMS)
    assert_near(lse, wanted[1], LSE)
    keyless = torch.isneginf(wanted[1])
    assert not out[keyless].any()


@HEADS
@pytest.mark.parametrize("options", ["", "sink", "counts", "sink counts"])
@pytest.mark.parametrize("rows", [1, 2, 8, 31, 128])
def test_decode_matches_the_reference(rows: int, options: str, heads: int) -> None:
    case = decode_case(rows, heads)
    made: dict[str, Any] = {}
    if "sink" in options:
        made["sink"] = torch.randn(heads)
    if "counts" in options:
        made["valid_counts"] = counts_of(case)

    found = attend(
        *case.on("cuda"), AttentionOptions(**{name: one.cuda() for name, one in made.items()})
    )

    assert found[0].dtype == BF16
    assert_matches(found, case.expected(**made))


@HEADS
def test_lists_of_2048_match_the_reference(heads: int) -> None:
    case = decode_case(16, heads, topk=2048)
    assert_matches(attend(*case.on("cuda")), case.expected())


@pytest.mark.parametrize("topk", [64, 192])
def test_lists_of_any_multiple_of_64_match_the_reference(topk: int) -> None:
    case = decode_case(5, 64, topk)
    assert_matches(attend(*case.on("cuda")), case.expected())


def test_more_rows_than_schedules_are_kept_for_match_the_reference() -> None:
    case = decode_case(1100, 64, topk=64)
    for _ in range(2):
        assert_matches(attend(*case.on("cuda")), case.expected())


@HEADS
@pytest.mark.parametrize("layout", ["fp8_ds_mla", "bf16"])
def test_rows_that_are_listed_often_match_the_reference(layout: str, heads: int) -> None:
    case = attention(40, heads, 256, layout=layout)
    case.row_ids[-1] = -1
    sink, counts = torch.randn(heads), counts_of(case)

    found = attend(*case.on("cuda"), AttentionOptions(sink=sink.cuda(), valid_counts=counts.cuda()))

    assert_matches(found, case.expected(sink=sink, valid_counts=counts))


@HEADS
@pytest.mark.parametrize("pad_bytes", [0, 16])
def test_rows_of_odd_pools_and_rows_apart_give_the_same_bits(pad_bytes: int, heads: int) -> None:
    case = decode_case(8, heads)
    query, pool, row_ids, *rest = case.on("cuda")
    wanted = attend(query, pool, row_ids, *rest)
    odd = torch.nn.functional.pad(pool[:-1], (0, pad_bytes))[:, :656]

    found = attend(query, odd, row_ids, *rest)

    assert len(odd) % 64
    for one, other in zip(found, wanted, strict=True):
        assert_bits_equal(one.cpu(), other.cpu())


@HEADS
def test_bf16_rows_apart_give_the_same_bits(heads: int) -> None:
    case = attention(8, heads, 128, layout="bf16")
    query, pool, row_ids, *rest = case.on("cuda")
    wanted = attend(query, pool, row_ids, *rest)
    apart = torch.nn.functional.pad(pool, (0, 16))[:, : case.layout.row_bytes]

    found = attend(query, apart, row_ids, *rest)

    for one, other in zip(found, wanted, strict=True):
        assert_bits_equal(one.cpu(), other.cpu())


@pytest.mark.parametrize("missing", [0, 1])
def test_rows_behind_2_to_the_31_bytes_match_the_reference(missing: int) -> None:
    case = attention(4, 64, 128)
    before = 2**31 // 656 // 64 * 64 + 64
    pool = torch.zeros(before + -(-len(case.pool) // 64) * 64 - missing, 656, dtype=torch.uint8)
    pool[before : before + len(case.pool)] = case.pool[: len(pool) - before]
    shifted = torch.where(case.row_ids >= 0, case.row_ids + before, -1)

    found = attend(case.query.cuda(), pool.cuda(), shifted.cuda(), case.layout, SCALE)

    assert_matches(found, case.expected())


@HEADS
@pytest.mark.parametrize("rows", [1, 64])
def test_replays_attend_to_what_lists_queries_and_counts_say_then(rows: int, heads: int) -> None:
    case = decode_case(rows, heads)
    query, pool, row_ids, *rest = case.on("cuda")
    counts, sink = torch.full((rows,), 512).int().cuda(), torch.randn(heads).cuda()
    out = torch.empty(rows, heads, 512, dtype=BF16).cuda(), torch.empty(rows, heads).cuda()
    other_counts = counts_of(case)
    changed = replace(case, query=case.query.flip(0, 1), row_ids=case.row_ids.flip(0, 1))

    def call() -> None:
        attend(
            query, pool, row_ids, *rest, AttentionOptions(sink=sink, valid_counts=counts, out=out)
        )

    call()
    kept = set(sparse_mla_flash._schedules)
    held = query, row_ids, counts
    replay(call, held, (changed.query, changed.row_ids, other_counts))

    replayed = tuple(result.cpu() for result in out)
    assert set(sparse_mla_flash._schedules) == kept
    assert_matches(replayed, changed.expected(sink=sink.cpu(), valid_counts=other_counts))
    call()
    for one, other in zip(replayed, out, strict=True):
        assert_bits_equal(one, other.cpu())


def test_a_shape_that_is_only_captured_matches_the_reference() -> None:
    case = decode_case(7, 64, topk=320)
    call = case.on("cuda")
    attend(*decode_case(7, 64, topk=384).on("cuda"))  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = attend(*call)
    graph.replay()
    assert_matches(found, case.expected())
    assert_matches(attend(*call), case.expected())
