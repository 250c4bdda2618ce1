"""The Gluon pipeline of sparse attention with few heads; that it runs, and where codes are odd."""

from dataclasses import replace

import pytest
import torch

from hisparse_kernels.gpu.pipelines import attention_pipeline_of
from hisparse_kernels.gpu.sparse_mla import sparse_mla_triton
from hisparse_kernels.kv_rows import unpack_kv_rows
from hisparse_kernels.layouts import kv_layout
from hisparse_kernels.sparse_mla import AttentionOptions, sparse_mla_ref
from tests.kernels.gpu.attention import BF16, F16, F32, SCALE, Attention, assert_matches, attention

GPU = pytest.mark.gpu
LAYOUT = kv_layout("fp8_ds_mla")
NAN_CODES = (0x7F, 0xFF)


def stored_rows(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Rows [N, 656] of latent codes [N, 512] and scales [N, 4], with a rope of zeros."""
    rope = torch.zeros(len(codes), 128, dtype=torch.uint8)
    return torch.cat([codes.byte(), scales.float().view(torch.uint8), rope], 1)


@GPU
@pytest.mark.usefixtures("needs_wgmma")
@pytest.mark.parametrize(("layout", "heads"), [("fp8_ds_mla", 1), ("fp8_ds_mla", 32), ("fp8", 16)])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_it_runs_for_few_heads_over_fp8_rows(layout: str, heads: int, dtype: torch.dtype) -> None:
    query, pool, _, stored, _ = attention(1, heads, 64, layout=layout, dtype=dtype).on("cuda")

    assert attention_pipeline_of(query, pool, stored) is not None


@GPU
@pytest.mark.usefixtures("needs_wgmma")
def test_it_leaves_the_rest_to_the_triton_body() -> None:
    few = attention(1, 8, 64)
    pool = few.pool.cuda()
    apart = torch.empty(pool.numel() + 1, dtype=torch.uint8, device="cuda")[1:].view(pool.shape)

    assert attention_pipeline_of(few.query.to("cuda", F32), pool, LAYOUT) is None
    assert attention_pipeline_of(few.query.cuda(), pool, kv_layout("bf16")) is None
    assert attention_pipeline_of(few.query.cuda(), apart, LAYOUT) is None
    assert attention_pipeline_of(few.query, few.pool, LAYOUT) is None


@pytest.mark.parametrize("split_keys", [None, 64])
def test_a_lone_key_gives_every_code_its_value(split_keys: int | None, device: str) -> None:
    codes = torch.arange(512) % 256
    codes[(codes == NAN_CODES[0]) | (codes == NAN_CODES[1])] = 0
    scales = torch.tensor([[1.0, 2.0**-20, 2.0**40, 3.0]])
    pool = stored_rows(codes[None], scales)
    ids = torch.tensor([[-1, 0, -1]]).int()
    query = torch.zeros(1, 5, 576, dtype=BF16)
    case = Attention(query, pool, ids, LAYOUT)

    out, _ = sparse_mla_triton(*case.on(device), AttentionOptions(split_keys=split_keys))

    values = unpack_kv_rows(pool, LAYOUT)[:, None, :512].expand(1, 5, 512)
    assert torch.equal(out.cpu(), values.to(BF16))  # a sum of -0.0 is 0.0


@pytest.mark.parametrize("exponent", [-60, -20, 20, 60])
def test_scales_may_be_of_any_size(exponent: int, device: str) -> None:
    case = attention(3, 7, 200, seed=3)
    scales = case.pool[:, 512:528].contiguous().view(torch.float32)
    pool = case.pool.clone()
    pool[:, 512:528] = (scales * 2.0**exponent).view(torch.uint8)
    query = case.query.float()
    query[..., :512] *= 2.0**-exponent  # the logits stay what they were
    scaled = replace(case, pool=pool, query=query.to(BF16))

    out, lse = sparse_mla_triton(*scaled.on(device))

    expected = case.expected()
    unscaled = (out.float() * 2.0**-exponent).to(BF16), lse
    assert_matches(unscaled, expected, LAYOUT)


@GPU
@pytest.mark.usefixtures("needs_wgmma")
def test_rows_of_a_pool_beyond_2_to_the_31_bytes_are_read() -> None:
    case = attention(2, 16, 130)
    first = 2**31 // LAYOUT.row_bytes + 5
    pool = torch.empty(first + len(case.pool), LAYOUT.row_bytes, dtype=torch.uint8, device="cuda")
    pool[first:] = case.pool.cuda()
    ids = torch.where(case.row_ids >= 0, case.row_ids + first, -1).cuda()

    actual = sparse_mla_triton(case.query.cuda(), pool, ids, LAYOUT, SCALE)

    expected = sparse_mla_ref(case.query.float(), case.pool, case.row_ids, LAYOUT, SCALE)
    assert_matches(actual, expected, LAYOUT)
