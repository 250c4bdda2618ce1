import pytest
import torch

from accuracy import assert_bits_equal
from cases import NAN_BYTE, PAGE_EDGES
from hisparse_kernels.gpu.index_rows import (
    pack_index_rows_triton,
    quantize_index_q_triton,
    read_index_rows_triton,
    unpack_index_rows_triton,
    write_index_rows_triton,
)
from hisparse_kernels.index_rows import (
    pack_index_rows_ref,
    quantize_index_q_ref,
    read_index_rows_ref,
    unpack_index_rows_ref,
    write_index_rows_ref,
)
from hisparse_kernels.layouts import INDEX_LAYOUTS, IndexLayout, index_layout
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay

LAYOUTS = pytest.mark.parametrize("layout", INDEX_LAYOUTS.values(), ids=INDEX_LAYOUTS.keys())
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64]
)


def keys_of(count: int, *, seed: int = 0) -> torch.Tensor:
    """Keys of every magnitude; the first is below the floor of the scales."""
    torch.manual_seed(seed)
    return torch.randn(count, 128) * torch.logspace(-12, 4, max(count, 2))[:count, None]


def pages_of(num_pages: int, layout: IndexLayout) -> torch.Tensor:
    return torch.full((num_pages, layout.page_bytes), NAN_BYTE).byte()


@LAYOUTS
@pytest.mark.parametrize("count", [0, *PAGE_EDGES])
def test_packed_and_unpacked_rows_are_the_references(
    layout: IndexLayout, count: int, device: str
) -> None:
    keys = keys_of(count)
    expected = pack_index_rows_ref(keys, layout)

    rows = pack_index_rows_triton(keys.to(device), layout)
    unpacked = unpack_index_rows_triton(rows, layout)

    assert_bits_equal(rows.cpu(), expected)
    assert_bits_equal(unpacked.cpu(), unpack_index_rows_ref(expected, layout))


@LAYOUTS
@DTYPES
def test_strided_keys_of_every_float_dtype_pack_alike(
    layout: IndexLayout, dtype: torch.dtype, device: str
) -> None:
    keys = torch.randn(40, 256).to(dtype)[::2, ::2]

    rows = pack_index_rows_triton(keys.to(device), layout)
    unpacked = unpack_index_rows_triton(rows[::3], layout)

    expected = pack_index_rows_ref(keys, layout)
    assert_bits_equal(rows.cpu(), expected)
    assert_bits_equal(unpacked.cpu(), unpack_index_rows_ref(expected[::3], layout))


@LAYOUTS
def test_twenty_runs_are_equal_bit_for_bit(layout: IndexLayout, device: str) -> None:
    keys, weights = keys_of(70).to(device), torch.randn(7, 10).to(device)

    def run() -> tuple[torch.Tensor, ...]:
        rows = pack_index_rows_triton(keys, layout)
        codes, scaled = quantize_index_q_triton(keys.view(7, 10, 128), weights)
        return rows, unpack_index_rows_triton(rows, layout), codes.view(torch.uint8), scaled

    first = run()
    for _ in range(19):
        for again, found in zip(run(), first, strict=True):
            assert_bits_equal(again, found)


def test_every_finite_code_survives_unpack_and_pack(device: str) -> None:
    codes = torch.arange(256).byte().view(2, 128).clone()
    codes[:, 127] = torch.tensor([0x7E, 0xFE]).byte()  # in place of the NaN codes; pins the scale
    rows = torch.cat([codes, torch.full((2, 1), 0.25).view(torch.uint8)], dim=1)
    layout = index_layout("fp8")

    unpacked = unpack_index_rows_triton(rows.to(device), layout)

    assert_bits_equal(unpacked.cpu(), unpack_index_rows_ref(rows, layout))
    assert_bits_equal(pack_index_rows_triton(unpacked, layout).cpu(), rows)


def test_a_nan_spoils_its_row_and_no_other(device: str) -> None:
    layout = index_layout("fp8")
    keys = torch.ones(20, 128)
    keys[7, 90] = torch.nan

    rows = pack_index_rows_triton(keys.to(device), layout)

    spoilt = unpack_index_rows_triton(rows, layout).cpu().isnan()
    assert bool(spoilt[7].all())
    assert int(spoilt.sum()) == 128


@LAYOUTS
@pytest.mark.parametrize("count", [0, *PAGE_EDGES])
def test_rows_are_written_and_read_as_by_the_reference(
    layout: IndexLayout, count: int, device: str
) -> None:
    torch.manual_seed(count)
    rows = torch.randint(0, 256, (count, layout.row_bytes)).byte()
    row_ids = torch.randperm(7 * 64)[:count]
    row_ids[::5] = -1
    expected, pages = pages_of(7, layout), pages_of(7, layout).to(device)
    write_index_rows_ref(expected, row_ids, rows, layout)

    write_index_rows_triton(pages, row_ids.to(device), rows.to(device), layout)
    wanted = torch.randint(0, 7 * 64, (count,))
    read = read_index_rows_triton(pages, wanted.to(device), layout)

    assert_bits_equal(pages.cpu(), expected)
    assert_bits_equal(read.cpu(), read_index_rows_ref(expected, wanted, layout))


@LAYOUTS
def test_strided_rows_and_ids_are_written_alike(layout: IndexLayout, device: str) -> None:
    rows = torch.randint(0, 256, (10, 2 * layout.row_bytes)).byte()[::2, ::2]
    row_ids = torch.arange(10)[::2]
    expected, pages = pages_of(1, layout), pages_of(1, layout).to(device)
    write_index_rows_ref(expected, row_ids, rows, layout)

    write_index_rows_triton(pages, row_ids.to(device), rows.to(device), layout)

    assert_bits_equal(pages.cpu(), expected)


@pytest.mark.parametrize(("rows", "heads"), [(0, 4), (1, 1), (3, 64), (17, 5)])
@DTYPES
def test_quantised_queries_are_the_references(
    rows: int, heads: int, dtype: torch.dtype, device: str
) -> None:
    torch.manual_seed(0)
    index_q, weights = torch.randn(rows, heads, 128).to(dtype), torch.randn(rows, heads)

    codes, folded = quantize_index_q_triton(index_q.to(device), weights.to(device))

    expected_codes, expected_weights = quantize_index_q_ref(index_q, weights)
    assert_bits_equal(codes.cpu(), expected_codes)
    assert_bits_equal(folded.cpu(), expected_weights)


def test_strided_queries_are_quantised_alike(device: str) -> None:
    torch.manual_seed(0)
    index_q, weights = torch.randn(12, 3, 256)[..., ::2].transpose(0, 1), torch.randn(12, 3).T

    codes, folded = quantize_index_q_triton(index_q.to(device), weights.to(device))

    expected_codes, expected_weights = quantize_index_q_ref(index_q, weights)
    assert_bits_equal(codes.cpu(), expected_codes.contiguous())
    assert_bits_equal(folded.cpu(), expected_weights.contiguous())


@LAYOUTS
def test_results_go_where_the_caller_wants_them(layout: IndexLayout, device: str) -> None:
    keys, (index_q, weights) = keys_of(5), (torch.randn(2, 3, 128), torch.randn(2, 3))
    rows = torch.full((5, layout.row_bytes), NAN_BYTE).byte().to(device)
    read, unpacked = rows.clone(), torch.full((5, 128), torch.nan, device=device)
    pages, row_ids = pages_of(1, layout).to(device), torch.arange(5, device=device)
    quantised = (
        torch.full((2, 3, 128), NAN_BYTE).byte().to(device).view(torch.float8_e4m3fn),
        torch.full((2, 3), torch.nan, device=device),
    )

    assert pack_index_rows_triton(keys.to(device), layout, out=rows) is rows
    assert unpack_index_rows_triton(rows, layout, out=unpacked) is unpacked
    write_index_rows_triton(pages, row_ids, rows, layout)
    assert read_index_rows_triton(pages, row_ids, layout, out=read) is read
    arguments = index_q.to(device), weights.to(device)
    assert quantize_index_q_triton(*arguments, out=quantised) is quantised

    expected = pack_index_rows_ref(keys, layout)
    assert_bits_equal(rows.cpu(), expected)
    assert_bits_equal(read.cpu(), expected)
    assert_bits_equal(unpacked.cpu(), unpack_index_rows_ref(expected, layout))
    for actual, wanted in zip(quantised, quantize_index_q_ref(index_q, weights), strict=True):
        assert_bits_equal(actual.cpu(), wanted)


@pytest.mark.gpu
@LAYOUTS
def test_large_calls_are_the_references_bytes_in_every_run(layout: IndexLayout) -> None:
    keys = keys_of(4097)
    rows, row_ids = pack_index_rows_ref(keys, layout), torch.randperm(80 * 64)[:4097]
    expected = pages_of(80, layout)
    write_index_rows_ref(expected, row_ids, rows, layout)

    for _ in range(20):
        packed, pages = pack_index_rows_triton(keys.cuda(), layout), pages_of(80, layout).cuda()
        write_index_rows_triton(pages, row_ids.cuda(), packed, layout)
        assert_bits_equal(pages.cpu(), expected)
        assert_bits_equal(read_index_rows_triton(pages, row_ids.cuda(), layout).cpu(), rows)


@pytest.mark.gpu
@LAYOUTS
def test_rows_past_two_to_the_31_bytes_are_written_and_read(layout: IndexLayout) -> None:
    num_pages = 2**31 // layout.page_bytes + 2
    pages = torch.empty(num_pages, layout.page_bytes, dtype=torch.uint8, device="cuda")
    row_ids = torch.tensor([num_pages * 64 - 1, 0, num_pages * 64 - 64], device="cuda")
    rows = pack_index_rows_ref(torch.randn(3, 128), layout)

    write_index_rows_triton(pages, row_ids, rows.cuda(), layout)

    assert_bits_equal(read_index_rows_triton(pages, row_ids, layout).cpu(), rows)
    ends = pages[[0, -1]].cpu()
    held = torch.tensor([127, 0, 64])
    assert_bits_equal(read_index_rows_ref(ends, held, layout), rows)


@pytest.mark.gpu
@LAYOUTS
def test_a_graph_writes_new_rows_to_new_places(layout: IndexLayout) -> None:
    first, second = torch.tensor([3, -1, 70, 5]), torch.tensor([127, 2, -1, 64])
    held = [keys_of(4).cuda(), first.cuda(), torch.randn(4, 8, 128).cuda()]
    wanted = [keys_of(4, seed=1), second, torch.randn(4, 8, 128)]
    pages, weights = pages_of(2, layout).cuda(), torch.randn(4, 8).cuda()
    rows = torch.empty(4, layout.row_bytes, dtype=torch.uint8, device="cuda")
    quantised = torch.empty_like(held[2], dtype=torch.float8_e4m3fn), torch.empty_like(weights)
    read, unpacked = torch.empty_like(rows), torch.empty(4, 128, device="cuda")
    written = torch.tensor([127, 2, 64, 2], device="cuda")

    def call() -> None:
        pack_index_rows_triton(held[0], layout, out=rows)
        write_index_rows_triton(pages, held[1], rows, layout)
        quantize_index_q_triton(held[2], weights, out=quantised)
        read_index_rows_triton(pages, written, layout, out=read)
        unpack_index_rows_triton(read, layout, out=unpacked)

    assert_allocates_nothing(call)
    replay(call, [*held, pages], [*wanted, pages_of(2, layout)])

    expected = pages_of(2, layout)
    write_index_rows_ref(expected, second, pack_index_rows_ref(wanted[0], layout), layout)
    assert_bits_equal(pages.cpu(), expected)
    found = read_index_rows_ref(expected, written.cpu(), layout)
    assert_bits_equal(read.cpu(), found)
    assert_bits_equal(unpacked.cpu(), unpack_index_rows_ref(found, layout))
    for actual, want in zip(quantised, quantize_index_q_ref(wanted[2], weights.cpu()), strict=True):
        assert_bits_equal(actual.cpu(), want)
