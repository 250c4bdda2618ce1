"""Inputs of kernel tests: stored keys in shuffled pages, with garbage where nothing may look."""

from dataclasses import dataclass

import torch

from hisparse_kernels.index_rows import (
    pack_index_rows,
    quantize_index_q,
    unpack_index_rows,
    write_index_rows,
)
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout

NAN_BYTE = 0xFF  # a NaN in e4m3, bf16 and fp32 alike
PAGE_EDGES = (1, 63, 64, 65, 127, 128, 129, 300)


@dataclass(frozen=True)
class PagedKeys:
    """Index keys of some sequences in shuffled pages; all other bytes are NaN."""

    index_pages: torch.Tensor  # [num_pages, page_bytes] uint8
    page_table: torch.Tensor  # [num_seqs, max_pages] int32
    lengths: torch.Tensor  # [num_seqs] int32
    rows: list[torch.Tensor]  # per sequence [length, row_bytes] uint8
    keys: list[torch.Tensor]  # per sequence [length, 128] fp32, dequantised


def paged_keys(
    lengths: tuple[int, ...],
    layout: IndexLayout,
    *,
    block_tokens: int = 64,
    seed: int = 0,
    signs_only: bool = False,
) -> PagedKeys:
    """Normal values; with `signs_only` -1, 0 and 1: their dots with whole numbers are exact."""
    torch.manual_seed(seed)
    pages_per_block = block_tokens // PAGE_TOKENS
    num_blocks = [-(-length // block_tokens) for length in lengths]
    shuffled = torch.randperm(sum(num_blocks) + 3)  # some blocks of the pool belong to nobody
    pages = torch.full((len(shuffled) * pages_per_block, layout.page_bytes), NAN_BYTE).byte()
    table = torch.full((len(lengths), max([1, *num_blocks]) * pages_per_block), -1).int()
    values = [torch.randn(length, 128) for length in lengths]
    values = [value.clamp(-1.4, 1.4).round() for value in values] if signs_only else values
    all_rows = [pack_index_rows(value, layout) for value in values]
    taken = 0
    for seq, (rows, blocks) in enumerate(zip(all_rows, num_blocks, strict=True)):
        slots = shuffled[taken : taken + blocks]
        taken += blocks
        held = (slots[:, None] * pages_per_block + torch.arange(pages_per_block)).flatten()
        table[seq, : len(held)] = held.int()
        write_index_rows(pages, row_ids_of(table[seq], torch.arange(len(rows))), rows, layout)
    keys = [unpack_index_rows(rows, layout) for rows in all_rows]
    return PagedKeys(pages, table, torch.tensor(lengths).int(), all_rows, keys)


def row_ids_of(pages: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Stored row of each token position of one sequence."""
    return pages[positions // PAGE_TOKENS].long() * PAGE_TOKENS + positions % PAGE_TOKENS


def queries(rows: int, heads: int, *, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """index_q [rows, heads, 128] and index_weights [rows, heads] with both signs."""
    torch.manual_seed(seed)
    return torch.randn(rows, heads, 128), torch.randn(rows, heads) * heads**-0.5


def queries_of(dtype: torch.dtype, rows: int, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`queries` in the dtype that an indexer hands over; e4m3 ones with their scales folded in."""
    index_q, weights = queries(rows, heads)
    if dtype == torch.float8_e4m3fn:
        return quantize_index_q(index_q, weights)
    return index_q.to(dtype), weights


def naive_scores(
    index_q: torch.Tensor, index_weights: torch.Tensor, keys: torch.Tensor
) -> torch.Tensor:
    """[rows, T] float64, straight from the formula."""
    dots = torch.einsum("rhd,td->rht", index_q.double(), keys.double())
    return torch.einsum("rh,rht->rt", index_weights.double(), dots.relu())


def on(device: str, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to(device) for tensor in tensors]
