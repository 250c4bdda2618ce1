"""CPU tensors of production sizes: memory that is never touched, with the true alignment."""

from collections.abc import Iterator
from itertools import product
from typing import TypeVar

import torch

from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout, KvLayout

ROWS = (1, 3, 128, 4096)  # Triton compiles counts of 1 and multiples of 16 apart
NUM_SEQS = 128
CONTEXT_TOKENS = 1 << 20
HOST_TOKENS = 1 << 22  # 2.7 GB of fp8_ds_mla rows: past 2**31 bytes
HOT_SLOTS = 4096
BLOCK_TOKENS = 128
MAX_PAGES = CONTEXT_TOKENS // PAGE_TOKENS

_A = TypeVar("_A")
_B = TypeVar("_B")


def int32(*shape: int) -> torch.Tensor:
    """Indices, ids and counts."""
    return torch.empty(shape, dtype=torch.int32)


def int64(*shape: int) -> torch.Tensor:
    """Row ids and bases."""
    return torch.empty(shape, dtype=torch.int64)


def fp32(*shape: int) -> torch.Tensor:
    """Logits, weights and sums."""
    return torch.empty(shape, dtype=torch.float32)


def kv_rows(count: int, layout: KvLayout) -> torch.Tensor:
    """Stored KV rows."""
    return torch.empty(count, layout.row_bytes, dtype=torch.uint8)


def index_rows(count: int, layout: IndexLayout) -> torch.Tensor:
    """Packed index rows."""
    return torch.empty(count, layout.row_bytes, dtype=torch.uint8)


def index_pages(tokens: int, layout: IndexLayout) -> torch.Tensor:
    """Index rows in pages."""
    return torch.empty(tokens // PAGE_TOKENS, layout.page_bytes, dtype=torch.uint8)


def page_table(num_seqs: int = NUM_SEQS) -> torch.Tensor:
    """Physical pages of long sequences."""
    return int32(num_seqs, MAX_PAGES)


def pairs(first: dict[str, _A], second: dict[str, _B]) -> Iterator[tuple[str, _A, _B]]:
    """Every combination of two named things, and its name."""
    for (one, a), (other, b) in product(first.items(), second.items()):
        yield f"{one}, {other}", a, b
