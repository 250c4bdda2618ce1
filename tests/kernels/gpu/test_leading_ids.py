import pytest
import torch

from hisparse_kernels.gpu.leading_ids import leading_ids_triton


@pytest.mark.parametrize("topk", [1, 64, 1024, 1025, 2048])
def test_ids_behind_the_counts_become_padding(topk: int, device: str) -> None:
    torch.manual_seed(0)
    counts = torch.tensor([0, 1, topk // 2, topk - 1, topk, topk + 3, -1], dtype=torch.int32)
    row_ids = torch.randint(1 << 30, (len(counts), topk), dtype=torch.int32)
    given = row_ids.to(device)

    found = leading_ids_triton(given, counts.to(device))

    is_kept = torch.arange(topk) < counts[:, None]
    assert torch.equal(found.cpu(), row_ids.where(is_kept, -1))
    assert torch.equal(given.cpu(), row_ids)  # the caller's lists stay


def test_no_list_is_no_launch(device: str) -> None:
    row_ids = torch.empty(0, 2048, dtype=torch.int32, device=device)

    assert leading_ids_triton(row_ids, row_ids[:, 0]).shape == (0, 2048)
