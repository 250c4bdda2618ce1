"""Calls of refine_logits for its tests: random blocks of stored keys, an output that is marked."""

import pytest
import torch

from cases import PagedKeys, on
from hisparse_kernels.gpu.refine_logits import refine_logits_triton
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout
from hisparse_kernels.refine_logits import HostBlocks

F8, BF16, F32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
UNTOUCHED = 12345.0
LENGTHS = (1, 63, 192, 700)
PATHS = pytest.mark.parametrize(
    ("layout", "dtype", "block_tokens", "heads"),
    [
        ("fp8", F8, 64, 64),
        ("fp8", F8, 128, 1),
        ("fp8", BF16, 128, 40),
        ("fp8", F32, 192, 5),
        ("fp32", F8, 192, 16),
        ("fp32", F32, 64, 32),
    ],
)


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def chosen_blocks(
    stored: PagedKeys, row_seq: torch.Tensor, m: int, block_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots and ids [rows, m] of random distinct blocks, -1 beyond the sequence's end."""
    ids = torch.full((len(row_seq), m), -1).int()
    slots = ids.clone()
    pages_per_block = block_tokens // PAGE_TOKENS
    for row, seq in enumerate(row_seq.tolist()):
        if seq >= 0:
            blocks = torch.randperm(-(-int(stored.lengths[seq]) // block_tokens))[:m].int()
            first = stored.page_table[seq, blocks.long() * pages_per_block]
            ids[row, : len(blocks)], slots[row, : len(blocks)] = blocks, first // pages_per_block
    return slots, ids


def untouched(rows: int, columns: int, device: str = "cpu") -> torch.Tensor:
    return torch.full((rows, columns), UNTOUCHED, device=device)


def refined(
    inputs: tuple[torch.Tensor, ...],
    block_tokens: int,
    layout: IndexLayout,
    device: str,
    host: HostBlocks | None = None,
) -> torch.Tensor:
    """What the kernel leaves in a tensor that it found full of another value."""
    out = untouched(len(inputs[3]), inputs[3].shape[1] * block_tokens, device)
    args = *on(device, *inputs), block_tokens, layout, out
    assert refine_logits_triton(*args, host) is out
    return out.cpu()
