import pytest
import torch
import triton
import triton.language as tl

from accuracy import assert_bits_equal
from hisparse_kernels.e4m3 import to_e4m3 as to_e4m3_ref
from hisparse_kernels.gpu.e4m3 import from_e4m3, to_e4m3

_BLOCK = tl.constexpr(65536)
CODES = torch.arange(256).byte()
VALUES = CODES.view(torch.float8_e4m3fn).float()
FINITE = VALUES[VALUES.isfinite()].unique()
MIDPOINTS = (FINITE[1:] + FINITE[:-1]) / 2


@triton.jit
def _encode_kernel(values_ptr, codes_ptr, count):
    place = tl.program_id(0) * _BLOCK + tl.arange(0, _BLOCK)
    values = tl.load(values_ptr + place, mask=place < count, other=0.0)
    tl.store(codes_ptr + place, to_e4m3(values), mask=place < count)


@triton.jit
def _decode_kernel(codes_ptr, values_ptr):
    place = tl.arange(0, 256)
    tl.store(values_ptr + place, from_e4m3(tl.load(codes_ptr + place)))


def encoded(values: torch.Tensor, device: str) -> torch.Tensor:
    values = values.to(device)
    codes = torch.zeros(values.shape, dtype=torch.uint8, device=device)
    grid = (triton.cdiv(values.numel(), _BLOCK.value),)
    _encode_kernel[grid](values, codes, values.numel(), enable_fp_fusion=False)
    return codes.cpu()


SPECIAL = torch.tensor([0.0, -0.0, 464.0, -464.0, 480.0, 3e38, float("inf"), float("-inf"), 1e-45])


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(VALUES, id="every_code"),
        pytest.param(MIDPOINTS, id="midpoints"),
        pytest.param(torch.nextafter(MIDPOINTS, MIDPOINTS + 1), id="above_midpoints"),
        pytest.param(torch.nextafter(MIDPOINTS, MIDPOINTS - 1), id="below_midpoints"),
        pytest.param(SPECIAL, id="special"),
        pytest.param(torch.tensor([torch.nan, -torch.nan]), id="nan"),
    ],
)
def test_named_values_round_as_torch_rounds(values: torch.Tensor, device: str) -> None:
    assert_bits_equal(encoded(values, device), to_e4m3_ref(values).view(torch.uint8))


@pytest.mark.parametrize("seed", range(3))
def test_random_bits_round_as_torch_rounds(seed: int, device: str) -> None:
    torch.manual_seed(seed)
    values = torch.randint(-(2**31), 2**31, (300_000,)).int().view(torch.float32)
    values = torch.cat([values, torch.randn(100_000) * 2.0 ** (3 * seed - 3)])

    assert_bits_equal(encoded(values, device), to_e4m3_ref(values).view(torch.uint8))


def test_every_code_has_its_exact_value(device: str) -> None:
    values = torch.zeros(256, device=device)

    _decode_kernel[(1,)](CODES.to(device), values, enable_fp_fusion=False)

    torch.testing.assert_close(values.cpu(), VALUES, rtol=0, atol=0, equal_nan=True)
    assert_bits_equal(values.cpu()[VALUES == 0], VALUES[VALUES == 0])  # both zeros keep their sign
