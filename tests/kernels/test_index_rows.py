import pytest
import torch

from accuracy import assert_bits_equal
from cases import NAN_BYTE
from hisparse_kernels.index_rows import (
    pack_index_rows,
    quantize_index_q,
    read_index_rows,
    split_pages,
    unpack_index_rows,
    write_index_rows,
)
from hisparse_kernels.layouts import INDEX_LAYOUTS, IndexLayout, index_layout

LAYOUTS = pytest.mark.parametrize("layout", INDEX_LAYOUTS.values(), ids=INDEX_LAYOUTS.keys())


@pytest.mark.parametrize(
    ("name", "row_bytes", "page_bytes"), [("fp8", 132, 8448), ("fp32", 512, 32768)]
)
def test_layout_has_the_documented_size(name: str, row_bytes: int, page_bytes: int) -> None:
    layout = index_layout(name)

    assert (layout.row_bytes, layout.page_bytes, layout.head_dim) == (row_bytes, page_bytes, 128)


def test_fp8_row_is_codes_then_the_plain_scale() -> None:
    torch.manual_seed(0)
    keys = torch.randn(5, 128)
    rows = pack_index_rows(keys, index_layout("fp8"))

    scale = keys.abs().amax(1) / 448
    codes = (keys / scale[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert_bits_equal(rows[:, :128].contiguous(), codes.view(torch.uint8))
    assert_bits_equal(rows[:, 128:].contiguous().view(torch.float32)[:, 0], scale)


def test_fp32_row_is_the_key() -> None:
    keys = torch.randn(5, 128)

    assert_bits_equal(
        unpack_index_rows(pack_index_rows(keys, index_layout("fp32")), index_layout("fp32")), keys
    )


def test_every_finite_e4m3_code_survives_unpack_and_pack() -> None:
    codes = torch.arange(256).byte().view(2, 128).clone()
    codes[:, 127] = torch.tensor([0x7E, 0xFE]).byte()  # in place of the NaN codes; pins the scale
    rows = torch.cat([codes, torch.full((2, 1), 0.25).view(torch.uint8)], dim=1)
    layout = index_layout("fp8")

    assert_bits_equal(pack_index_rows(unpack_index_rows(rows, layout), layout), rows)


def test_a_key_of_zeros_has_a_finite_scale() -> None:
    rows = pack_index_rows(torch.zeros(2, 128), index_layout("fp8"))

    assert torch.equal(unpack_index_rows(rows, index_layout("fp8")), torch.zeros(2, 128))
    assert float(rows[0, 128:].contiguous().view(torch.float32)) == float(torch.tensor(1e-10) / 448)


@LAYOUTS
def test_a_row_has_the_same_bytes_packed_alone(layout: IndexLayout) -> None:
    torch.manual_seed(0)
    keys = torch.randn(130, 128)
    rows = pack_index_rows(keys, layout)

    for row in (0, 63, 129):
        assert_bits_equal(pack_index_rows(keys[row : row + 1], layout)[0], rows[row])


@LAYOUTS
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_written_rows_read_back_and_others_stay(layout: IndexLayout, count: int) -> None:
    torch.manual_seed(0)
    pages = torch.full((5, layout.page_bytes), NAN_BYTE).byte()
    rows = pack_index_rows(torch.randn(count, 128), layout)
    row_ids = torch.randperm(5 * 64)
    untouched = read_index_rows(pages, row_ids[count:], layout)

    write_index_rows(pages, row_ids[:count], rows, layout)

    assert_bits_equal(read_index_rows(pages, row_ids[:count], layout), rows)
    assert_bits_equal(read_index_rows(pages, row_ids[count:], layout), untouched)


def test_fp8_page_holds_all_codes_before_all_scales() -> None:
    layout = index_layout("fp8")
    torch.manual_seed(0)
    rows = pack_index_rows(torch.randn(64, 128), layout)
    pages = torch.zeros(2, layout.page_bytes).byte()

    write_index_rows(pages, 64 + torch.arange(64), rows, layout)

    assert_bits_equal(pages[1, : 64 * 128], rows[:, :128].flatten())
    assert_bits_equal(pages[1, 64 * 128 :], rows[:, 128:].flatten())
    assert not pages[0].any()


@LAYOUTS
def test_a_row_id_of_minus_one_is_skipped(layout: IndexLayout) -> None:
    pages = torch.zeros(2, layout.page_bytes).byte()
    rows = torch.full((3, layout.row_bytes), 7).byte()

    write_index_rows(pages, torch.tensor([-1, 5, -1]), rows, layout)

    assert int((pages != 0).sum()) == layout.row_bytes


@LAYOUTS
def test_split_pages_times_scale_is_the_unpacked_row(layout: IndexLayout) -> None:
    torch.manual_seed(0)
    rows = pack_index_rows(torch.randn(128, 128), layout)
    pages = torch.zeros(2, layout.page_bytes).byte()
    write_index_rows(pages, torch.arange(128), rows, layout)

    keys, scale = split_pages(pages, layout)

    whole = keys if scale is None else keys * scale[:, None]
    assert_bits_equal(whole, unpack_index_rows(rows, layout))


@pytest.mark.parametrize("heads", [1, 3, 64])
def test_quantised_queries_give_the_same_scores_up_to_fp8_rounding(heads: int) -> None:
    torch.manual_seed(0)
    index_q, weights, keys = torch.randn(9, heads, 128), torch.randn(9, heads), torch.randn(50, 128)

    codes, folded = quantize_index_q(index_q, weights)

    assert codes.dtype == torch.float8_e4m3fn
    scale = index_q.abs().amax(-1) / 448
    torch.testing.assert_close(codes.float() * scale[:, :, None], index_q, rtol=2**-4, atol=2e-3)
    torch.testing.assert_close(folded, weights * scale)
    exact = torch.einsum("rh,rht->rt", weights, (index_q @ keys.T).relu())
    quantised = torch.einsum("rh,rht->rt", folded, (codes.float() @ keys.T).relu())
    assert float((exact - quantised).abs().max()) < 0.06 * float(exact.abs().max())
