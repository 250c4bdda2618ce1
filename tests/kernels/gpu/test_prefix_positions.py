import pytest
import torch

from accuracy import assert_bits_equal
from hisparse_kernels.gpu.prefix_positions import prefix_positions_triton
from hisparse_kernels.prefix_positions import prefix_positions_ref


@pytest.mark.parametrize("k", [1, 5, 2048, 2049])
def test_every_position_up_to_the_rows_own_is_listed(k: int, device: str) -> None:
    row_pos = torch.tensor([-1, 0, k // 2, k - 1, -1]).int()
    out = torch.full((5, k), 12345, dtype=torch.int32, device=device)

    assert prefix_positions_triton(row_pos.to(device), k, out=out) is out

    assert out.cpu().tolist() == [
        list(range(last + 1)) + [-1] * (k - last - 1) for last in row_pos.tolist()
    ]
    assert_bits_equal(out.cpu(), prefix_positions_ref(row_pos, k))


def test_positions_are_read_by_their_stride(device: str) -> None:
    row_pos = torch.arange(8).int()

    found = prefix_positions_triton(row_pos.to(device)[::3], 7)

    assert_bits_equal(found.cpu(), prefix_positions_ref(row_pos[::3], 7))


def test_no_rows_have_no_positions(device: str) -> None:
    assert prefix_positions_triton(torch.empty(0, device=device).int(), 4).shape == (0, 4)
