from dataclasses import replace
from typing import Any

import pytest
import torch

from accuracy import assert_bits_equal
from cases import NAN_BYTE, on
from hisparse_kernels.gpu.sparse_mla import sparse_mla_triton
from hisparse_kernels.sparse_mla import AttentionOptions, sparse_mla, split_workspace_size
from tests.kernels.gpu.attention import (
    BF16,
    F32,
    SCALE,
    Attention,
    Results,
    assert_matches,
    attention,
)
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay

GPU = pytest.mark.gpu
# bf16 products with few heads and with many, and fp32 ones; in one go and merged
PATHS = pytest.mark.parametrize(
    ("layout", "dtype", "heads", "split_keys"),
    [
        ("fp8_ds_mla", BF16, 3, None),
        ("fp8_ds_mla", BF16, 64, 64),
        ("bf16", BF16, 8, 64),
        ("fp32", F32, 2, 64),
    ],
)


def attend(case: Attention, device: str, **options: Any) -> Results:
    out, lse = sparse_mla_triton(*case.on(device), AttentionOptions(**options))
    return out.cpu(), lse.cpu()


def rows_of(case: Attention, rows: list[int]) -> Attention:
    return replace(case, query=case.query[rows], row_ids=case.row_ids[rows])


def assert_same(actual: Results, expected: Results) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert_bits_equal(one, other)


@PATHS
def test_a_row_has_the_bits_it_has_alone_and_beside_padding(
    layout: str, dtype: torch.dtype, heads: int, split_keys: int | None, device: str
) -> None:
    case = attention(3, heads, 128, layout=layout, dtype=dtype)
    out, lse = attend(case, device, split_keys=split_keys)
    padding = rows_of(case, [0, 0])
    padding.row_ids.fill_(-1)
    mixed = replace(
        case,
        query=torch.cat([padding.query, case.query.flip(0)]),
        row_ids=torch.cat([padding.row_ids, case.row_ids.flip(0)]),
    )

    beside = attend(mixed, device, split_keys=split_keys)

    assert_same((beside[0][2:], beside[1][2:]), (out.flip(0), lse.flip(0)))
    for row in range(3):
        alone = attend(rows_of(case, [row]), device, split_keys=split_keys)
        assert_same(alone, (out[row : row + 1], lse[row : row + 1]))


@pytest.mark.parametrize(("layout", "heads"), [("fp8_ds_mla", 3), ("fp8_ds_mla", 64), ("bf16", 64)])
@pytest.mark.parametrize("split_keys", [64, 192, 256, 320])
def test_a_pinned_split_gives_a_row_its_bits_in_any_batch(
    layout: str, heads: int, split_keys: int, device: str
) -> None:
    rows, topk = (40, 2048) if device == "cuda" else (2, 300)
    case = attention(rows, heads, topk, layout=layout, dtype=BF16)

    together = attend(case, device, split_keys=split_keys)

    assert_matches(together, case.expected(), case.layout)
    for row in {0, rows - 1}:
        alone = attend(rows_of(case, [row]), device, split_keys=split_keys)
        assert_same(alone, (together[0][row : row + 1], together[1][row : row + 1]))


@PATHS
def test_neither_padding_of_the_list_nor_place_in_the_pool_changes_the_bits(
    layout: str, dtype: torch.dtype, heads: int, split_keys: int | None, device: str
) -> None:
    case = attention(2, heads, 100, layout=layout, dtype=dtype)
    order = torch.randperm(len(case.pool))
    pool = torch.empty_like(case.pool)
    pool[order] = case.pool
    ids = order[case.row_ids.clamp(min=0).long()].int().masked_fill(case.row_ids < 0, -1)
    ids = torch.nn.functional.pad(ids, (0, 100), value=-1)

    moved = attend(replace(case, pool=pool, row_ids=ids), device, split_keys=split_keys)

    assert_same(moved, attend(case, device, split_keys=split_keys))


@GPU
@PATHS
def test_twenty_runs_are_equal_bit_for_bit(
    layout: str, dtype: torch.dtype, heads: int, split_keys: int | None
) -> None:
    args = attention(9, heads, 2048, layout=layout, dtype=dtype).on("cuda")
    first = sparse_mla_triton(*args, AttentionOptions(split_keys=split_keys))

    for _ in range(19):
        assert_same(sparse_mla_triton(*args, AttentionOptions(split_keys=split_keys)), first)


@pytest.mark.parametrize(("layout", "dtype"), [("fp8_ds_mla", BF16), ("fp32", F32)])
def test_strided_inputs_give_the_bits_of_packed_ones(
    layout: str, dtype: torch.dtype, device: str
) -> None:
    case = attention(2, 3, 66, layout=layout, dtype=dtype)
    counts, sink = torch.tensor([60, 66]).int(), torch.tensor([0.0, 1.0, -1.0])
    options = dict(zip(("valid_counts", "sink"), on(device, counts, sink), strict=True))
    packed = attend(case, device, **options)
    pool = torch.full((len(case.pool), case.layout.row_bytes + 48), NAN_BYTE, dtype=torch.uint8)
    pool[:, : case.layout.row_bytes] = case.pool
    doubled = [torch.stack([t, t], -1).flatten(-2) for t in (case.row_ids, counts, sink)]
    ids, counts, sink = (t[..., ::2] for t in on(device, *doubled))
    rows = pool.to(device)[:, : case.layout.row_bytes]

    for dims in ((1, 0, 2), (1, 2, 0)):  # the inner ones of the stored query
        stored = case.query.permute(dims).contiguous().to(device)
        query = stored.permute([dims.index(dim) for dim in range(3)])
        out, lse = sparse_mla_triton(
            query, rows, ids, case.layout, SCALE, AttentionOptions(valid_counts=counts, sink=sink)
        )
        assert not query.is_contiguous()
        assert_same((out.cpu(), lse.cpu()), packed)


@GPU
@pytest.mark.parametrize("heads", [64, 128])
def test_a_prefill_chunk_of_4096_rows_matches_the_reference(heads: int) -> None:
    few = attention(1, 1, 6400)  # its pool of 8,000 keys
    keys = (few.pool[:, 0] != NAN_BYTE).nonzero()[:, 0].int().cuda()
    order = torch.rand(4096, len(keys), device="cuda").argsort(1)[:, :2048]
    ids = keys[order].contiguous()
    ids[:1000, 1500:] = -1
    ids[77] = -1
    query = torch.randn(4096, heads, 576, dtype=BF16, device="cuda")
    args = query, few.pool.cuda(), ids, few.layout, SCALE

    out, lse = sparse_mla_triton(*args)

    some = torch.tensor([0, 77, 999, 1000, 4095]).cuda()
    part = replace(few, query=query[some].cpu(), row_ids=ids[some].cpu())
    assert_matches((out[some], lse[some]), part.expected(), few.layout)
    again = sparse_mla_triton(*args)
    assert torch.equal(again[0], out)
    assert torch.equal(again[1], lse)


@GPU
@pytest.mark.parametrize("rows", [1, 8, 128])
@pytest.mark.parametrize("heads", [16, 64, 128])
def test_decode_of_2048_keys_in_splits_matches_the_reference(rows: int, heads: int) -> None:
    case = attention(rows, heads, 2048)
    out, lse = attend(case, "cuda", split_keys=256)

    some = sorted({0, rows // 2, rows - 1})
    assert_matches((out[some], lse[some]), rows_of(case, some).expected(), case.layout)


@GPU
@pytest.mark.parametrize(("layout", "dtype"), [("fp8_ds_mla", BF16), ("fp32", F32)])
def test_rows_past_two_to_the_31_bytes_are_read(layout: str, dtype: torch.dtype) -> None:
    case = attention(2, 3, 100, layout=layout, dtype=dtype)
    before = 2**31 // case.layout.row_bytes + 3
    shape = before + len(case.pool), case.layout.row_bytes
    pool = torch.full(shape, NAN_BYTE, dtype=torch.uint8, device="cuda")
    pool[before:] = case.pool.cuda()
    ids = torch.where(case.row_ids < 0, -1, case.row_ids + before).cuda()

    out, lse = sparse_mla_triton(case.query.cuda(), pool, ids, case.layout, SCALE)

    assert_same((out.cpu(), lse.cpu()), attend(case, "cuda"))


@GPU
def test_heads_past_two_to_the_31_values_are_read() -> None:
    case = attention(1, 128, 64)
    held = torch.zeros(128, 32769, 576, dtype=BF16, device="cuda")
    query = held.transpose(0, 1)[:1]
    query.copy_(case.query)
    assert query.stride(1) * 127 > 2**31

    out, lse = sparse_mla_triton(query, *case.on("cuda")[1:])

    assert_same((out.cpu(), lse.cpu()), attend(case, "cuda"))


@GPU
@pytest.mark.parametrize(("rows", "topk", "split_keys"), [(32769, 64, None), (4097, 512, 64)])
def test_outputs_and_workspaces_past_two_to_the_31_values_are_written(
    rows: int, topk: int, split_keys: int | None
) -> None:
    case = attention(1, 128, topk)
    query, pool, ids, *rest = case.on("cuda")
    size = split_workspace_size(rows, 128, topk, case.layout, split_keys)
    assert max(rows * 128 * 512, size) > 2**31

    out, lse = sparse_mla_triton(
        query.expand(rows, -1, -1),
        pool,
        ids.expand(rows, -1),
        *rest,
        AttentionOptions(split_keys=split_keys),
    )

    one = attend(case, "cuda", split_keys=split_keys)
    for row in (0, rows // 2, rows - 1):
        assert_same((out[row].cpu(), lse[row].cpu()), (one[0][0], one[1][0]))


@GPU
@pytest.mark.parametrize("split_keys", [None, 64])
def test_a_graph_replays_with_other_rows_and_counts_and_allocates_nothing(
    split_keys: int | None,
) -> None:
    case, changed = attention(4, 16, 200), attention(4, 16, 200, seed=1)
    counts, new_counts = torch.tensor([200, 3, 70, 0]).int(), torch.tensor([0, 200, 199, 64]).int()
    changed.row_ids[2] = -1  # a padded row
    sink, held_counts = on("cuda", torch.linspace(-1, 2, 16), counts)
    args = case.on("cuda")
    out = torch.full((4, 16, 512), torch.nan, dtype=BF16, device="cuda")
    lse = torch.full((4, 16), torch.nan, device="cuda")
    size = split_workspace_size(4, 16, 200, case.layout, split_keys)
    workspace = torch.full((size,), torch.nan, device="cuda")

    def call() -> None:  # of the public op, which takes the kernels for CUDA tensors
        sparse_mla(*args, AttentionOptions(sink, held_counts, split_keys, (out, lse), workspace))

    assert_allocates_nothing(call)
    replay(call, (*args[:3], held_counts), (*changed.on("cpu")[:3], new_counts))

    expected = changed.expected(sink=sink.cpu(), valid_counts=new_counts)
    assert_matches((out, lse), expected, case.layout)
