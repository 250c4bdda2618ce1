import pytest
import torch

from accuracy import assert_bits_equal
from cases import NAN_BYTE, PAGE_EDGES
from hisparse_kernels.gpu.kv_rows import pack_kv_rows_triton, unpack_kv_rows_triton
from hisparse_kernels.kv_rows import pack_kv_rows_ref, unpack_kv_rows_ref
from hisparse_kernels.layouts import KV_LAYOUTS, KvLayout, kv_layout
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay

LAYOUTS = pytest.mark.parametrize("layout", KV_LAYOUTS.values(), ids=KV_LAYOUTS.keys())
FP8_LAYOUTS = pytest.mark.parametrize("name", ["fp8_ds_mla", "fp8"])


def values_of(count: int, layout: KvLayout, *, seed: int = 0) -> torch.Tensor:
    """Rows of every magnitude, from far below the floor of the scales on."""
    torch.manual_seed(seed)
    return torch.randn(count, layout.query_dim) * torch.logspace(-9, 5, max(count, 2))[:count, None]


@LAYOUTS
@pytest.mark.parametrize("count", [0, *PAGE_EDGES[:4], 129])
def test_packed_rows_are_the_references_bytes(layout: KvLayout, count: int, device: str) -> None:
    values = values_of(count, layout)

    rows = pack_kv_rows_triton(values.to(device), layout)

    assert_bits_equal(rows.cpu(), pack_kv_rows_ref(values, layout))


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_values_of_every_float_dtype_pack_alike(
    layout: KvLayout, dtype: torch.dtype, device: str
) -> None:
    values = values_of(9, layout).clamp(-6e4, 6e4).to(dtype)

    rows = pack_kv_rows_triton(values.to(device), layout)

    assert_bits_equal(rows.cpu(), pack_kv_rows_ref(values, layout))


@LAYOUTS
@pytest.mark.parametrize("count", [0, *PAGE_EDGES[:4], 129])
def test_unpacked_values_are_the_references_bits(layout: KvLayout, count: int, device: str) -> None:
    rows = pack_kv_rows_ref(values_of(count, layout), layout)

    values = unpack_kv_rows_triton(rows.to(device), layout)

    assert_bits_equal(values.cpu(), unpack_kv_rows_ref(rows, layout))


@FP8_LAYOUTS
@pytest.mark.parametrize("exponent", [-20, 0, 7])
def test_every_code_unpacks_to_its_value_and_packs_again(
    name: str, exponent: int, device: str
) -> None:
    layout = kv_layout(name)
    row = torch.zeros(1, layout.row_bytes).byte()
    row[0, :512] = torch.arange(256).byte().repeat(2)
    row[0, 512:528] = torch.full((4,), 2.0**exponent).view(torch.uint8)
    finite = row.clone()
    finite[0, [127, 255, 383, 511]] = 0x7E  # in place of NaN; 448 also pins the scales

    values = unpack_kv_rows_triton(row.to(device), layout).cpu()
    again = pack_kv_rows_triton(unpack_kv_rows_triton(finite.to(device), layout), layout)

    expected = unpack_kv_rows_ref(row, layout)
    torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
    assert_bits_equal(again.cpu(), finite)


@FP8_LAYOUTS
def test_nan_spoils_its_group_and_no_other(name: str, device: str) -> None:
    layout = kv_layout(name)
    values = torch.ones(2, layout.query_dim)
    values[1, 130] = torch.nan

    unpacked = unpack_kv_rows_triton(pack_kv_rows_triton(values.to(device), layout), layout)

    spoilt = unpacked.cpu().isnan()
    assert bool(spoilt[1, 128:256].all())
    assert int(spoilt.sum()) == 128


@FP8_LAYOUTS
def test_scales_at_powers_of_two_and_infinities_are_the_references(name: str, device: str) -> None:
    layout = kv_layout(name)
    edges = torch.tensor([448.0, 448.0 * 1.0001, 448.0 * 0.9999, 0.0, 1e-4, torch.inf, 3e38])
    values = torch.zeros(7, layout.query_dim)
    values[:, 0] = edges

    rows = pack_kv_rows_triton(values.to(device), layout)

    assert_bits_equal(rows.cpu(), pack_kv_rows_ref(values, layout))


@LAYOUTS
def test_results_go_where_the_caller_wants_them(layout: KvLayout, device: str) -> None:
    values = values_of(5, layout)
    rows = torch.full((5, layout.row_bytes), NAN_BYTE, dtype=torch.uint8, device=device)
    unpacked = torch.full((5, layout.query_dim), torch.nan, device=device)

    assert pack_kv_rows_triton(values.to(device), layout, out=rows) is rows
    assert unpack_kv_rows_triton(rows, layout, out=unpacked) is unpacked

    expected = pack_kv_rows_ref(values, layout)
    assert_bits_equal(rows.cpu(), expected)
    assert_bits_equal(unpacked.cpu(), unpack_kv_rows_ref(expected, layout))


@LAYOUTS
def test_strided_values_and_rows_give_the_same_bytes(layout: KvLayout, device: str) -> None:
    values = values_of(6, layout).repeat_interleave(2, dim=1)[:, ::2]
    rows = pack_kv_rows_ref(values, layout)

    packed = pack_kv_rows_triton(values.to(device), layout)
    unpacked = unpack_kv_rows_triton(rows.to(device)[::2], layout)

    assert_bits_equal(packed.cpu(), rows)
    assert_bits_equal(unpacked.cpu(), unpack_kv_rows_ref(rows[::2], layout))


@pytest.mark.gpu
@LAYOUTS
def test_a_large_batch_is_the_references_bytes_in_every_run(layout: KvLayout) -> None:
    values = values_of(4096, layout)
    expected = pack_kv_rows_ref(values, layout)
    on_gpu, unpacked = values.cuda(), unpack_kv_rows_ref(expected, layout)

    for _ in range(20):
        rows = pack_kv_rows_triton(on_gpu, layout)
        assert_bits_equal(rows.cpu(), expected)
        assert_bits_equal(unpack_kv_rows_triton(rows, layout).cpu(), unpacked)


@pytest.mark.gpu
@LAYOUTS
def test_a_graph_packs_new_values_and_allocates_nothing(layout: KvLayout) -> None:
    held, wanted = values_of(8, layout).cuda(), values_of(8, layout, seed=1)
    rows = torch.empty(8, layout.row_bytes, dtype=torch.uint8, device="cuda")
    unpacked = torch.empty(8, layout.query_dim, device="cuda")

    def call() -> None:
        unpack_kv_rows_triton(pack_kv_rows_triton(held, layout, out=rows), layout, out=unpacked)

    assert_allocates_nothing(call)
    replay(call, [held], [wanted])

    expected = pack_kv_rows_ref(wanted, layout)
    assert_bits_equal(rows.cpu(), expected)
    assert_bits_equal(unpacked.cpu(), unpack_kv_rows_ref(expected, layout))
