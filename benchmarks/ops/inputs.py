"""Random inputs on the GPU: index keys in rows and pages, queries, KV rows, lists of positions."""

import torch

from hisparse_kernels.index_rows import pack_index_rows_ref, quantize_index_q_ref
from hisparse_kernels.kv_rows import pack_kv_rows_ref
from hisparse_kernels.layouts import (
    INDEX_DIM,
    INDEX_LAYOUTS,
    KV_LAYOUTS,
    PAGE_TOKENS,
    KvLayout,
)

INDEX = INDEX_LAYOUTS["fp8"]
FP8_ROWS, BF16_ROWS = KV_LAYOUTS["fp8_ds_mla"], KV_LAYOUTS["bf16"]
COLD_BYTES = 128 << 20  # inputs of one graph, together: more than the L2 cache holds
_CHUNK_PAGES = 4096
_BASE_ROWS = 1 << 16
_MAX_SETS = 16
_CHUNK_ROWS = 256


def num_sets(bytes_each: float) -> int:
    """Sets of inputs to go through, so that none is found in the L2 cache; 16 at most."""
    return int(min(_MAX_SETS, max(1, -(-COLD_BYTES // int(bytes_each)))))


def index_keys(num_tokens: int) -> torch.Tensor:
    """[num_tokens, 132] uint8, stored index rows."""
    return pack_index_rows_ref(torch.randn(num_tokens, INDEX_DIM, device="cuda"), INDEX)


def index_pages(num_pages: int) -> torch.Tensor:
    """[num_pages, page_bytes] uint8, all of them different."""
    pages = torch.empty(num_pages, INDEX.page_bytes, dtype=torch.uint8, device="cuda")
    for some in pages.split(_CHUNK_PAGES):
        fill_pages(some, index_keys(len(some) * PAGE_TOKENS))
    return pages


def fill_pages(pages: torch.Tensor, rows: torch.Tensor) -> None:
    """Writes index rows [pages * 64, 132] to whole pages [pages, page_bytes], in order."""
    rows = rows.view(len(pages), PAGE_TOKENS, -1)
    pages[:, : PAGE_TOKENS * INDEX_DIM] = rows[:, :, :INDEX_DIM].flatten(1)
    pages[:, PAGE_TOKENS * INDEX_DIM :] = rows[:, :, INDEX_DIM:].flatten(1)


def page_codes(pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [tokens, 128] e4m3 and scales [tokens] fp32 of whole pages, in order."""
    codes = pages[:, : PAGE_TOKENS * INDEX_DIM].reshape(-1, INDEX_DIM)
    scales = pages[:, PAGE_TOKENS * INDEX_DIM :].contiguous().view(torch.float32)
    return codes.view(torch.float8_e4m3fn), scales.flatten()


def index_queries(rows: int, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 index_q [rows, heads, 128] and fp32 index_weights [rows, heads]."""
    scale = (heads * INDEX_DIM) ** -0.5
    weights = torch.randn(rows, heads, device="cuda") * scale
    return quantize_index_q_ref(torch.randn(rows, heads, INDEX_DIM, device="cuda"), weights)


def kv_rows(num_rows: int, layout: KvLayout) -> torch.Tensor:
    """[num_rows, row_bytes] uint8 of finite values; 64K different rows, again and again."""
    count = min(num_rows, _BASE_ROWS)
    rows = pack_kv_rows_ref(torch.randn(count, layout.query_dim, device="cuda"), layout)
    return rows if count == num_rows else rows.repeat(-(-num_rows // count), 1)[:num_rows]


def page_tables(sets: int, sequences: int, pages_each: int) -> list[torch.Tensor]:
    """Shuffled pages of a pool of `sets * sequences * pages_each`: one table for each set."""
    pages = torch.randperm(sets * sequences * pages_each, device="cuda").int()
    return list(pages.view(sets, sequences, pages_each))


def positions(rows: int, count: int, end: int) -> torch.Tensor:
    """[rows, count] int32, ascending positions below `end`, drawn for each row alone."""
    drawn = [
        torch.rand(len(some), end, device="cuda").topk(count, dim=1).indices.sort(1).values.int()
        for some in torch.arange(rows).split(_CHUNK_ROWS)
    ]
    return torch.cat(drawn)


def shared_positions(rows: int, count: int, end: int, group: int) -> torch.Tensor:
    """As `positions`, but `group` neighbouring rows draw from the same `2 * count` ones."""
    pools = positions(-(-rows // group), 2 * count, end)
    chosen = positions(rows, count, 2 * count)
    return pools.repeat_interleave(group, 0)[:rows].gather(1, chosen.long())


def block_lists(rows: int, count: int, newest_block: torch.Tensor) -> torch.Tensor:
    """[rows, count] int32, ascending block ids, the first and each row's newest among them."""
    end = int(newest_block.max()) + 1
    scores = torch.rand(rows, end, device="cuda")
    block = torch.arange(end, device="cuda")
    newest = newest_block[:, None]
    scores.masked_fill_((block == 0) | (block == newest), 2.0)
    scores.masked_fill_(block > newest, -1.0)
    return scores.topk(count, dim=1).indices.sort(1).values.int()


def head_lists(rows: int, heads: int, count: int) -> torch.Tensor:
    """[rows, count] int32, ascending heads, drawn for each row alone."""
    drawn = torch.rand(rows, heads, device="cuda").topk(count, dim=1).indices
    return drawn.sort(1).values.int()


def sample_rows(rows: int, count: int = 8) -> torch.Tensor:
    """Rows to check: the first, the last, and some between."""
    return torch.linspace(0, rows - 1, min(rows, count), device="cuda").long()
