"""The Gluon pipeline of sparse attention with many heads; that it runs, and its bits."""

import pytest
import torch

from hisparse_kernels.gpu.listed_often import dequantised
from hisparse_kernels.gpu.pipelines import attention_pipeline_of
from hisparse_kernels.gpu.sparse_mla import sparse_mla_triton
from hisparse_kernels.layouts import kv_layout
from hisparse_kernels.sparse_mla import AttentionOptions, sparse_mla_ref
from tests.kernels.gpu.attention import BF16, F16, F32, SCALE, assert_matches, attention

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_wgmma")]
LAYOUTS = ["fp8_ds_mla", "fp8", "bf16"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("heads", "dtype"), [(33, BF16), (64, F16), (128, BF16)])
def test_it_runs_for_many_heads_and_matches(layout: str, heads: int, dtype: torch.dtype) -> None:
    case = attention(3, heads, 200, layout=layout, dtype=dtype)
    query, pool, ids, stored, _ = case.on("cuda")

    assert attention_pipeline_of(query, pool, stored) is not None
    for split_keys in (None, 64, 128):
        actual = sparse_mla_triton(
            query, pool, ids, stored, SCALE, AttentionOptions(split_keys=split_keys)
        )
        assert_matches(actual, case.expected(), stored)


def test_it_leaves_fp32_to_the_triton_body() -> None:
    query, pool, _, stored, _ = attention(1, 64, 64, layout="fp32").on("cuda")
    assert attention_pipeline_of(query, pool, stored) is None

    query, pool, _, stored, _ = attention(1, 64, 64, dtype=F32).on("cuda")
    assert attention_pipeline_of(query, pool, stored) is None


@pytest.mark.parametrize("split_keys", [None, 192])
def test_rows_in_bf16_give_the_bits_of_the_fp8_rows_they_were(split_keys: int | None) -> None:
    query, pool, ids, stored, _ = attention(5, 64, 700).on("cuda")

    coded = sparse_mla_triton(
        query, pool, ids, stored, SCALE, AttentionOptions(split_keys=split_keys)
    )
    values, bf16 = dequantised(pool, stored)
    plain = sparse_mla_triton(
        query, values, ids, bf16, SCALE, AttentionOptions(split_keys=split_keys)
    )

    assert torch.equal(coded[0], plain[0])
    assert torch.equal(coded[1], plain[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_twenty_runs_give_the_same_bits_whatever_else_runs_beside(layout: str) -> None:
    query, pool, ids, stored, _ = attention(64, 128, 2048, layout=layout).on("cuda")
    ids[3] = -1  # a row with no key
    ids[4, :-1] = -1  # its only key is in the last tile
    first = sparse_mla_triton(query[:8], pool, ids[:8], stored, SCALE)

    for rows in range(8, 64, 3):
        out, lse = sparse_mla_triton(query[:rows], pool, ids[:rows], stored, SCALE)
        assert torch.equal(out[:8], first[0])
        assert torch.equal(lse[:8], first[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_a_pool_beyond_2_to_the_31_bytes_are_read(layout: str) -> None:
    case = attention(2, 64, 130, layout=layout)
    row_bytes = kv_layout(layout).row_bytes
    first = 2**31 // row_bytes + 5
    pool = torch.empty(first + len(case.pool), row_bytes, dtype=torch.uint8, device="cuda")
    pool[first:] = case.pool.cuda()
    ids = torch.where(case.row_ids >= 0, case.row_ids + first, -1).cuda()

    actual = sparse_mla_triton(case.query.cuda(), pool, ids, case.layout, SCALE)

    expected = sparse_mla_ref(case.query.float(), case.pool, case.row_ids, case.layout, SCALE)
    assert_matches(actual, expected, case.layout)
