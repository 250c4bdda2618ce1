import torch

from accuracy import assert_bits_equal
from hisparse_kernels.e4m3 import from_e4m3, to_e4m3

CODES = torch.arange(256).byte()


def test_every_code_has_the_value_of_torchs_cast() -> None:
    expected = CODES.view(torch.float8_e4m3fn).float()

    values = from_e4m3(CODES.view(2, 128))

    assert_bits_equal(values.nan_to_num(nan=1e9), expected.nan_to_num(nan=1e9).view(2, 128))
    assert values.isnan().nonzero().tolist() == [[0, 127], [1, 127]]


def test_every_finite_code_survives_the_round_trip() -> None:
    finite = CODES[(CODES & 0x7F) != 0x7F]

    assert_bits_equal(to_e4m3(from_e4m3(finite)).view(torch.uint8), finite)


def test_values_beyond_the_range_saturate_and_nan_stays() -> None:
    codes = to_e4m3(torch.tensor([448.0, 1e4, torch.inf, -449.0, -torch.inf, torch.nan]))

    assert codes[:5].float().tolist() == [448.0, 448.0, 448.0, -448.0, -448.0]
    assert bool(codes[5].float().isnan())
