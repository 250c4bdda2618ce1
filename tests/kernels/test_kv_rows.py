import pytest
import torch

from accuracy import assert_bits_equal
from hisparse_kernels.kv_rows import pack_kv_rows, unpack_kv_rows
from hisparse_kernels.layouts import KV_LAYOUTS, KvLayout, kv_layout

LAYOUTS = pytest.mark.parametrize("layout", KV_LAYOUTS.values(), ids=KV_LAYOUTS.keys())
FP8_LAYOUTS = pytest.mark.parametrize("name", ["fp8_ds_mla", "fp8"])


@pytest.mark.parametrize(
    ("name", "row_bytes", "query_dim"),
    [("fp8_ds_mla", 656, 576), ("bf16", 1152, 576), ("fp8", 528, 512), ("fp32", 2304, 576)],
)
def test_layout_has_the_documented_size(name: str, row_bytes: int, query_dim: int) -> None:
    layout = kv_layout(name)

    assert (layout.row_bytes, layout.query_dim, layout.latent_dim) == (row_bytes, query_dim, 512)
    assert pack_kv_rows(torch.randn(3, query_dim), layout).shape == (3, row_bytes)


@LAYOUTS
@pytest.mark.parametrize("count", [0, 1, 3, 1024, 1025])
def test_values_change_in_the_first_packing_only(layout: KvLayout, count: int) -> None:
    torch.manual_seed(0)
    values = unpack_kv_rows(pack_kv_rows(torch.randn(count, layout.query_dim), layout), layout)

    assert_bits_equal(unpack_kv_rows(pack_kv_rows(values, layout), layout), values)


@LAYOUTS
def test_a_row_has_the_same_bytes_packed_alone(layout: KvLayout) -> None:
    torch.manual_seed(0)
    values = torch.randn(130, layout.query_dim) * torch.logspace(-6, 4, 130)[:, None]
    rows = pack_kv_rows(values, layout)

    for row in (0, 1, 64, 129):
        assert_bits_equal(pack_kv_rows(values[row : row + 1], layout)[0], rows[row])
        assert_bits_equal(
            unpack_kv_rows(rows[row : row + 1], layout)[0], unpack_kv_rows(rows, layout)[row]
        )


@FP8_LAYOUTS
def test_fp8_rows_are_the_bytes_of_codes_then_scales_then_rope(name: str) -> None:
    layout = kv_layout(name)
    torch.manual_seed(0)
    values = torch.randn(2, layout.query_dim)
    rows = pack_kv_rows(values, layout)

    for row in range(2):
        for group in range(4):
            part = slice(128 * group, 128 * group + 128)
            amax = float(values[row, part].abs().max())
            exponent = next(e for e in range(-60, 60) if 2.0**e >= amax / 448)
            codes = (values[row, part] / 2.0**exponent).to(torch.float8_e4m3fn)
            scale = rows[row, 512 + 4 * group : 516 + 4 * group].contiguous().view(torch.float32)
            assert scale.item() == 2.0**exponent
            assert_bits_equal(rows[row, part], codes.view(torch.uint8))
    rope = values[:, 512:].bfloat16().contiguous().view(torch.uint8)
    assert_bits_equal(rows[:, 528:].contiguous(), rope)


@FP8_LAYOUTS
@pytest.mark.parametrize("exponent", [-20, 0, 7])
def test_every_finite_e4m3_code_survives_unpack_and_pack(name: str, exponent: int) -> None:
    layout = kv_layout(name)
    codes = torch.arange(256).byte()
    codes[[0x7F, 0xFF]] = 0x7E  # the two NaN codes; 0x7e, 448, also pins both groups' scales
    row = torch.zeros(1, layout.row_bytes).byte()
    row[0, :512] = codes.repeat(2)
    row[0, 512:528] = torch.full((4,), 2.0**exponent).view(torch.uint8)

    assert_bits_equal(pack_kv_rows(unpack_kv_rows(row, layout), layout), row)


@FP8_LAYOUTS
def test_nan_codes_unpack_to_nan_and_nowhere_else(name: str) -> None:
    layout = kv_layout(name)
    row = pack_kv_rows(torch.ones(1, layout.query_dim), layout)
    row[0, [5, 300]] = torch.tensor([0x7F, 0xFF]).byte()

    assert unpack_kv_rows(row, layout).isnan().nonzero()[:, 1].tolist() == [5, 300]


@FP8_LAYOUTS
def test_the_scale_of_a_power_of_two_times_448_is_that_power(name: str) -> None:
    layout = kv_layout(name)
    values = torch.zeros(3, layout.query_dim)
    values[:, 0] = torch.tensor([448.0, 448.0 * 1.0001, 448.0 * 0.9999])

    scale = pack_kv_rows(values, layout)[:, 512:516].contiguous().view(torch.float32)

    assert scale[:, 0].tolist() == [1.0, 2.0, 1.0]


@FP8_LAYOUTS
def test_zeros_and_values_under_the_floor_keep_a_finite_scale(name: str) -> None:
    layout = kv_layout(name)
    values = torch.zeros(2, layout.query_dim)
    values[1] = 1e-9
    rows = pack_kv_rows(values, layout)

    scale = rows[:, 512:528].contiguous().view(torch.float32)
    assert torch.equal(scale, torch.full((2, 4), 2.0**-22))  # the power above 1e-4 / 448
    assert torch.equal(unpack_kv_rows(rows, layout)[0], values[0])


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_stays_within_the_layouts_precision(layout: KvLayout, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.randn(16, layout.query_dim).to(dtype)
    step = {"fp8_ds_mla": 2**-4, "fp8": 2**-4, "bf16": 2**-8, "fp32": 0.0}[layout.name]

    error = (unpack_kv_rows(pack_kv_rows(values, layout), layout) - values.float()).abs()

    group_amax = values.float().abs().amax(1, keepdim=True)
    assert bool((error <= step * values.float().abs() + step * group_amax * 2**-8).all())


def test_non_contiguous_values_and_rows_give_the_same_bytes() -> None:
    layout = kv_layout("fp8_ds_mla")
    torch.manual_seed(0)
    values = torch.randn(10, 2 * 576)[:, ::2]
    rows = pack_kv_rows(values, layout)

    assert_bits_equal(rows, pack_kv_rows(values.contiguous(), layout))
    assert_bits_equal(
        unpack_kv_rows(rows[::2], layout), unpack_kv_rows(rows[::2].contiguous(), layout)
    )
