"""Random queries and keys: independent normal ones, and ones whose logits mostly tie at 0."""

from typing import Literal

import torch

from benchmarks.ops.inputs import INDEX, fill_pages
from benchmarks.select.rows import Rows, pool_pages
from hisparse_kernels.index_rows import pack_index_rows_ref, quantize_index_q_ref
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS

Kind = Literal["normal", "ReLU-skewed"]

_CHUNK_PAGES = 4096
# A query moved by -a and a key by +a along one direction have products of mean -a**2 and variance
# 128 + 2 * a**2. So far apart a head sees 1 key in 120, and 64 heads together see 1 in 3.
_SHIFT = 5.8


def decode_rows(kind: Kind, batch: int, next_n: int, keys: int, heads: int) -> Rows:
    """The newest `next_n` rows of `batch` sequences."""
    row_seq = torch.arange(batch, dtype=torch.int32, device="cuda").repeat_interleave(next_n)
    row_pos = torch.arange(keys - next_n, keys, dtype=torch.int32, device="cuda").repeat(batch)
    return _rows(kind, row_seq, row_pos, batch, keys, heads)


def prefill_rows(kind: Kind, rows: int, keys: int, heads: int) -> Rows:
    """The last `rows` of one sequence."""
    row_pos = torch.arange(keys - rows, keys, dtype=torch.int32, device="cuda")
    return _rows(kind, torch.zeros_like(row_pos), row_pos, 1, keys, heads)


def _rows(
    kind: Kind,
    row_seq: torch.Tensor,
    row_pos: torch.Tensor,
    sequences: int,
    keys: int,
    heads: int,
) -> Rows:
    shift = 0.0 if kind == "normal" else _SHIFT * INDEX_DIM**-0.5
    scale = (heads * INDEX_DIM) ** -0.5
    draw = torch.randn if kind == "normal" else torch.rand
    weights = draw(len(row_pos), heads, device="cuda") * scale
    values = torch.randn(len(row_pos), heads, INDEX_DIM, device="cuda") - shift
    pages = torch.empty(
        sequences * keys // PAGE_TOKENS, INDEX.page_bytes, dtype=torch.uint8, device="cuda"
    )
    for some in pages.split(_CHUNK_PAGES):
        drawn = torch.randn(len(some) * PAGE_TOKENS, INDEX_DIM, device="cuda") + shift
        fill_pages(some, pack_index_rows_ref(drawn, INDEX))
    query, weights = quantize_index_q_ref(values, weights)
    return Rows(query, weights, row_seq, row_pos, pages, pool_pages(pages, keys), keys)
