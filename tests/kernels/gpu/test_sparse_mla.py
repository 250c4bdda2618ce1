import pytest
import torch

from accuracy import assert_bits_equal, assert_near, assert_near_largest
from hisparse_kernels.gpu.sparse_mla import sparse_mla_triton
from hisparse_kernels.kv_rows import unpack_kv_rows
from hisparse_kernels.layouts import kv_layout
from hisparse_kernels.sparse_mla import AttentionOptions, split_workspace_size
from tests.kernels.gpu.attention import (
    BF16,
    BF16_SUMS,
    F16,
    F32,
    SCALE,
    Attention,
    assert_matches,
    attention,
)

# bf16 products and fp32 ones, in one go and merged
PATHS = pytest.mark.parametrize(
    ("layout", "dtype", "split_keys"),
    [("fp8_ds_mla", BF16, None), ("fp8_ds_mla", BF16, 64), ("fp32", F32, 64)],
)


def poisoned_out(case: Attention, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    rows, heads, _ = case.query.shape
    out = torch.full((rows, heads, case.layout.latent_dim), torch.nan, dtype=case.query.dtype)
    return out.to(device), torch.full((rows, heads), torch.nan, device=device)


@pytest.mark.parametrize(
    ("layout", "dtype", "rows", "heads", "topk"),
    [
        ("fp8_ds_mla", BF16, 1, 1, 1),
        ("fp8_ds_mla", BF16, 5, 3, 63),
        ("fp8_ds_mla", BF16, 3, 17, 64),
        ("fp8_ds_mla", BF16, 2, 100, 65),
        ("fp8_ds_mla", BF16, 1, 8, 2048),
        ("fp8_ds_mla", F16, 3, 16, 65),
        ("fp8_ds_mla", F32, 2, 3, 65),
        ("bf16", BF16, 3, 8, 65),
        ("bf16", BF16, 2, 24, 65),
        ("bf16", BF16, 2, 128, 100),
        ("bf16", F32, 2, 3, 33),
        ("fp8", BF16, 3, 16, 64),
        ("fp8", BF16, 2, 24, 65),
        ("fp8", BF16, 2, 64, 65),
        ("fp8", F32, 1, 8, 65),
        ("fp32", F32, 2, 17, 64),
        ("fp32", BF16, 2, 3, 65),
        ("fp32", F16, 2, 8, 63),
    ],
)
def test_outputs_and_lse_match_the_reference(
    layout: str, dtype: torch.dtype, rows: int, heads: int, topk: int, device: str
) -> None:
    case = attention(rows, heads, topk, layout=layout, dtype=dtype)
    out = poisoned_out(case, device)

    written = sparse_mla_triton(*case.on(device), AttentionOptions(out=out))

    assert written[0] is out[0]
    assert written[1] is out[1]
    assert_matches(out, case.expected(), case.layout)


@PATHS
def test_attention_over_all_keys_is_dense_attention(
    layout: str, dtype: torch.dtype, split_keys: int | None, device: str
) -> None:
    case = attention(2, 8, 130, layout=layout, dtype=dtype, share_none=0.0)
    values = unpack_kv_rows(case.pool[case.row_ids[0].long()], case.layout).double()
    shuffled = torch.stack([case.row_ids[0][torch.randperm(130)] for _ in range(2)])
    whole = Attention(case.query, case.pool, shuffled, case.layout)

    actual = sparse_mla_triton(*whole.on(device), AttentionOptions(split_keys=split_keys))

    logits = case.query.double() @ values.T * SCALE
    dense = logits.softmax(-1) @ values[:, :512]
    assert_matches(actual, (dense.float(), torch.logsumexp(logits, -1).float()), case.layout)


@PATHS
def test_a_lone_key_after_tiles_of_nothing_gives_its_row(
    layout: str, dtype: torch.dtype, split_keys: int | None, device: str
) -> None:
    case = attention(3, 4, 200, layout=layout, dtype=dtype, share_none=0.0)
    keys = case.row_ids[:, 0].clone()
    case.row_ids.fill_(-1)[torch.arange(3), torch.tensor([0, 130, 199])] = keys

    out, lse = sparse_mla_triton(*case.on(device), AttentionOptions(split_keys=split_keys))

    values = unpack_kv_rows(case.pool[keys.long()], case.layout)
    rows = values[:, None, :512].expand(3, 4, 512).to(dtype)
    assert_bits_equal(out.cpu(), rows.contiguous())
    assert_near(lse.cpu(), torch.einsum("rhd,rd->rh", case.query.float(), values) * SCALE)


@pytest.mark.parametrize(
    ("layout", "dtype", "split_keys"),
    [
        ("fp8_ds_mla", BF16, None),
        ("fp8_ds_mla", BF16, 64),
        ("fp8_ds_mla", BF16, 128),
        ("fp8_ds_mla", BF16, 1024),
        ("fp32", F32, 128),
    ],
)
def test_splits_that_may_have_no_key_merge_to_the_reference(
    layout: str, dtype: torch.dtype, split_keys: int | None, device: str
) -> None:
    case = attention(5, 3, 200, layout=layout, dtype=dtype)
    case.row_ids[0, 64:] = -1  # the first split alone
    case.row_ids[1, :192] = -1  # the last split alone
    case.row_ids[2, 64:192] = -1  # none between
    case.row_ids[3] = -1  # no key at all
    size = split_workspace_size(5, 3, 200, case.layout, split_keys)
    out = poisoned_out(case, device)
    workspace = torch.full((size + 7,), torch.nan, device=device)

    sparse_mla_triton(
        *case.on(device), AttentionOptions(split_keys=split_keys, out=out, workspace=workspace)
    )

    assert_matches(out, case.expected(), case.layout)
    assert not out[0][3].any()
    assert bool((out[1][3] == -torch.inf).all())
    assert bool(workspace[size:].isnan().all())


@pytest.mark.parametrize("split_keys", [None, 64])
def test_valid_counts_hide_the_ids_after_them(split_keys: int | None, device: str) -> None:
    case = attention(7, 3, 150, share_none=0.1)
    counts = torch.tensor([0, 1, 64, 65, 149, 150, 1000]).int()

    actual = sparse_mla_triton(
        *case.on(device), AttentionOptions(valid_counts=counts.to(device), split_keys=split_keys)
    )

    assert_matches(actual, case.expected(valid_counts=counts), case.layout)
    hidden = torch.arange(150) >= counts[:, None]
    masked = case.row_ids.masked_fill(hidden, -1)
    same = sparse_mla_triton(
        *Attention(case.query, case.pool, masked, case.layout).on(device),
        AttentionOptions(split_keys=split_keys),
    )
    for one, other in zip(actual, same, strict=True):
        assert_bits_equal(one.cpu(), other.cpu())


@pytest.mark.parametrize("split_keys", [None, 64])
def test_a_sink_takes_its_share_of_the_denominator_only(
    split_keys: int | None, device: str
) -> None:
    case = attention(4, 7, 130)
    case.row_ids[2] = -1
    sink = torch.tensor([-torch.inf, -1e30, -200.0, 0.0, 5.0, 500.0, 1e30])

    out, lse = sparse_mla_triton(
        *case.on(device), AttentionOptions(sink=sink.to(device), split_keys=split_keys)
    )

    assert_matches((out, lse), case.expected(sink=sink), case.layout)
    assert_near(lse.cpu(), case.expected()[1])
    for head in range(5):  # each by itself: the largest output hides the small ones
        expected = case.expected(sink=sink)[0][:, head]
        assert_near_largest(out[:, head].cpu().float(), expected, BF16_SUMS)
    assert float(out[:, 5:].abs().max()) < 1e-30
    assert not out[2].any()


@PATHS
def test_logits_beyond_what_exp_can_take_neither_overflow_nor_vanish(
    layout: str, dtype: torch.dtype, split_keys: int | None, device: str
) -> None:
    case = attention(2, 8, 70, layout=layout, dtype=dtype)
    case.query[0] *= 60
    case.query[1] *= 300
    case.row_ids[1, 1:] = -1  # a lone key, far below 0 for some heads
    case.row_ids[1, 0] = case.row_ids[0].max()

    actual = sparse_mla_triton(*case.on(device), AttentionOptions(split_keys=split_keys))

    expected = case.expected()
    assert float(expected[1].max()) > 89
    assert float(expected[1].min()) < -104
    assert_matches(actual, expected, case.layout, largest_logit=float(expected[1].abs().max()))


@pytest.mark.parametrize("split_keys", [None, 64])
def test_no_rows_give_no_output(split_keys: int | None, device: str) -> None:
    layout = kv_layout("fp8_ds_mla")
    query, ids = torch.zeros(0, 2, 576, dtype=BF16), torch.zeros(0, 100).int()
    none = Attention(query, torch.zeros(1, layout.row_bytes).byte(), ids, layout)

    out, lse = sparse_mla_triton(*none.on(device), AttentionOptions(split_keys=split_keys))

    assert (out.shape, out.dtype) == ((0, 2, 512), BF16)
    assert (lse.shape, lse.dtype) == ((0, 2), F32)
