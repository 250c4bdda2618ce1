"""What is done once for many queries: rows in bf16, and FlashMLA's kernel where it is installed."""

from dataclasses import replace

import pytest
import torch

from accuracy import assert_bits_equal
from cases import NAN_BYTE
from hisparse_kernels.gpu.backend import fastest_ops, triton_ops
from hisparse_kernels.gpu.flash_mla import sparse_mla_fastest
from hisparse_kernels.gpu.listed_often import is_listed_often
from hisparse_kernels.gpu.sparse_mla import sparse_mla_triton
from hisparse_kernels.layouts import kv_layout
from hisparse_kernels.sparse_mla import AttentionOptions
from tests.kernels.gpu.attention import BF16, SCALE, Attention, assert_matches, attention

GPU = pytest.mark.gpu
LAYOUTS = pytest.mark.parametrize("layout", ["fp8_ds_mla", "bf16"])
HEADS = pytest.mark.parametrize("heads", [64, 128])


def of_few_rows(rows: int, heads: int, topk: int) -> Attention:
    """A pool of which every row is listed often."""
    case = attention(rows, heads, topk, share_none=0.1)
    assert is_listed_often(case.pool, case.row_ids)
    return case


def in_a_large_pool(case: Attention) -> Attention:
    """The same rows among so many others that none is listed often."""
    others = torch.full((case.row_ids.numel(), case.layout.row_bytes), NAN_BYTE).byte()
    large = replace(case, pool=torch.cat([case.pool, others]))
    assert not is_listed_often(large.pool, large.row_ids)
    return large


@pytest.mark.parametrize("heads", [5, 40])
def test_rows_that_are_listed_often_give_the_bits_of_others(heads: int, device: str) -> None:
    case = of_few_rows(24, heads, 65)

    often = sparse_mla_triton(*case.on(device))

    for one, other in zip(often, sparse_mla_triton(*in_a_large_pool(case).on(device)), strict=True):
        assert_bits_equal(one.cpu(), other.cpu())


def test_only_attention_differs_between_the_fastest_ops_and_triton() -> None:
    assert replace(fastest_ops(), sparse_mla=sparse_mla_triton) == triton_ops()


def test_without_flash_mla_triton_attends(device: str) -> None:
    if device == "cuda":
        pytest.skip("of a GPU the tests below say it")
    case = of_few_rows(24, 64, 128)

    found = sparse_mla_fastest(*case.on(device))

    for one, other in zip(found, sparse_mla_triton(*case.on(device)), strict=True):
        assert_bits_equal(one, other)


@GPU
@pytest.mark.usefixtures("needs_flash_mla")
@HEADS
@LAYOUTS
def test_flash_mla_attends_as_the_reference(heads: int, layout: str) -> None:
    case = attention(9, heads, 256, layout=layout)
    case.row_ids[3] = -1
    out = torch.full((9, heads, 512), torch.nan, dtype=BF16, device="cuda")
    lse = torch.full((9, heads), torch.nan, device="cuda")

    found = sparse_mla_fastest(*case.on("cuda"), AttentionOptions(out=(out, lse)))

    assert found[0] is out
    assert found[1] is lse
    assert_matches(found, case.expected(), case.layout)
    assert not out[3].any()
    assert bool((lse[3] == -torch.inf).all())


@GPU
@pytest.mark.usefixtures("needs_flash_mla")
@LAYOUTS
def test_a_row_of_flash_mla_has_the_bits_it_has_alone(layout: str) -> None:
    case = attention(300, 64, 128, layout=layout)

    out, lse = sparse_mla_fastest(*case.on("cuda"))

    for row in (0, 150, 299):
        one = replace(case, query=case.query[[row]], row_ids=case.row_ids[[row]])
        alone = sparse_mla_fastest(*one.on("cuda"))
        assert_bits_equal(alone[0], out[[row]])
        assert_bits_equal(alone[1], lse[[row]])


@GPU
@pytest.mark.usefixtures("needs_flash_mla")
@pytest.mark.parametrize("what", ["sink", "counts", "splits", "heads", "topk", "fp32"])
def test_what_flash_mla_does_not_do_is_triton_s(what: str) -> None:
    case = attention(5, 24 if what == "heads" else 64, 100 if what == "topk" else 128)
    if what == "fp32":
        case = replace(case, query=case.query.float())
    options = {
        "sink": {"sink": torch.randn(64, device="cuda")},
        "counts": {"valid_counts": torch.tensor([0, 1, 64, 127, 128]).int().cuda()},
        "splits": {"split_keys": 64},
    }.get(what, {})

    found = sparse_mla_fastest(*case.on("cuda"), AttentionOptions(**options))

    for one, other in zip(
        found, sparse_mla_triton(*case.on("cuda"), AttentionOptions(**options)), strict=True
    ):
        assert_bits_equal(one, other)


@GPU
@pytest.mark.usefixtures("needs_flash_mla")
def test_nan_in_rows_that_nothing_lists_does_not_leak() -> None:
    case = attention(4, 64, 128)
    large = in_a_large_pool(case)

    out, lse = sparse_mla_fastest(
        large.query.cuda(), large.pool.cuda(), large.row_ids.cuda(), kv_layout("fp8_ds_mla"), SCALE
    )

    assert_matches((out, lse), case.expected(), case.layout)
