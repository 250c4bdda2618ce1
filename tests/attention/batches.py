"""Packed batches over a paged KV cache whose every other byte is NaN."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cases import NAN_BYTE
from hisparse_kernels.kv_rows import pack_kv_rows_ref, unpack_kv_rows_ref
from hisparse_kernels.layouts import KvLayout, kv_layout
from hisparse_sidecar import MLAPlanMetadata

SCALE = 576**-0.5
# (query rows, tokens): a decode row, a chunk, no rows, no tokens, rows that see nothing, one token
SEQUENCES = ((1, 70), (3, 130), (0, 64), (1, 0), (3, 2), (2, 65), (1, 1))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Batch:
    """One step of several sequences; two rows of padding at the end."""

    sequences: tuple[tuple[int, int], ...]
    layout: KvLayout
    page_size: int
    query: torch.Tensor  # [rows, heads, query_dim]
    kv_cache: torch.Tensor  # [pages, page_size, values or bytes]
    table: torch.Tensor  # [num_seqs, max_pages] int32, 10**6 beyond a sequence's end

    @property
    def rows(self) -> int:
        return len(self.query)

    @property
    def device(self) -> torch.device:
        return self.query.device

    def csr(self) -> MLAPlanMetadata:
        counts = [-(-tokens // self.page_size) for _, tokens in self.sequences]
        pages = [self.table[seq, :count] for seq, count in enumerate(counts)]
        lens = self._ints([tokens for _, tokens in self.sequences])
        return MLAPlanMetadata.csr(self.qo_indptr(), self._ends(counts), torch.cat(pages), lens)

    def dense(self) -> MLAPlanMetadata:
        lens = self._ints([tokens for _, tokens in self.sequences])
        most = max(rows for rows, _ in self.sequences)
        return MLAPlanMetadata.dense(self.qo_indptr(), self.table, lens, most)

    def qo_indptr(self) -> torch.Tensor:
        return self._ends([rows for rows, _ in self.sequences])

    def plan(self, **changed: Any) -> dict[str, Any]:
        """Arguments of `plan` that FlashInfer's wrapper has, too."""
        return {
            "metadata": self.csr(),
            "num_heads": self.query.shape[1],
            "head_dim_ckv": self.layout.latent_dim,
            "head_dim_kpe": self.layout.rope_dim,
            "page_size": self.page_size,
            "causal": True,
            "sm_scale": SCALE,
            "q_data_type": self.query.dtype,
            "kv_data_type": self.kv_cache.dtype,
        } | changed

    def everything(self) -> torch.Tensor:
        """[rows, topk] int32, every position that any row may have, for each row."""
        most = max(tokens for _, tokens in self.sequences) + 5
        return torch.arange(most, device=self.device).int().expand(self.rows, -1).contiguous()

    def values(self) -> torch.Tensor:
        """[pages * page_size, query_dim] fp32."""
        flat = self.kv_cache.flatten(0, 1)
        return unpack_kv_rows_ref(flat.contiguous().view(torch.uint8), self.layout)

    def _ends(self, counts: Sequence[int]) -> torch.Tensor:
        return self._ints([0, *torch.tensor(counts).cumsum(0).tolist()])

    def _ints(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=self.device)


def make_batch(
    sequences: Sequence[tuple[int, int]] = SEQUENCES,
    *,
    device: str = "cpu",
    layout: str = "fp32",
    dtype: torch.dtype = torch.float32,
    heads: int = 3,
    page_size: int = 64,
    padding: int = 2,
    max_pages: int = 4,
    num_pages: int = 24,
    seed: int = 0,
) -> Batch:
    made = torch.Generator().manual_seed(seed)
    stored = kv_layout(layout)
    rows = sum(count for count, _ in sequences) + padding
    query = torch.randn(rows, heads, stored.query_dim, generator=made).to(dtype)
    pool = torch.full((num_pages * page_size, stored.row_bytes), NAN_BYTE, dtype=torch.uint8)
    free = torch.randperm(num_pages, generator=made).tolist()
    table = torch.full((len(sequences), max_pages), 10**6, dtype=torch.int32)
    for seq, (_, tokens) in enumerate(sequences):
        for page in range(-(-tokens // page_size)):
            table[seq, page] = number = free.pop()
            held = min(page_size, tokens - page * page_size)
            values = torch.randn(held, stored.query_dim, generator=made)
            pool[number * page_size :][:held] = pack_kv_rows_ref(values, stored)
    cache = pool.view(DTYPES.get(layout, torch.uint8)).unflatten(0, (num_pages, page_size))
    placed = (one.to(device) for one in (query, cache, table))
    return Batch(tuple(sequences), stored, page_size, *placed)
