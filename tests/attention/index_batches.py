"""Index keys and index queries for a batch, and its selections found sequence by sequence."""

from dataclasses import dataclass
from typing import Any

import torch

from cases import NAN_BYTE
from hisparse_kernels.backends import Ops
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout, index_layout
from hisparse_sidecar import SelectionConfig
from hisparse_sidecar.backends import ops_of
from hisparse_sidecar.selection import SelectionQuery, selector_for
from hisparse_sidecar.tuning.resident_keys import ResidentKeys, store_keys
from tests.attention.batches import Batch

INDEX_HEADS, TOPK = 4, 96
POOLED_PAGES = 2  # of a sequence: 128 blocks


@dataclass(frozen=True)
class IndexBatch:
    """What the indexer of one layer gives for a batch."""

    batch: Batch
    ops: Ops
    layout: IndexLayout
    block_tokens: int
    index_q: torch.Tensor  # [rows, heads, 128]
    index_weights: torch.Tensor  # [rows, heads]
    index_k_cache: torch.Tensor  # [pages, 64, row_bytes] uint8
    pooled_k_cache: torch.Tensor  # [pooled pages, page_bytes] uint8
    pooled_table: torch.Tensor  # [num_seqs, POOLED_PAGES] int32
    keys: tuple[torch.Tensor, ...]  # of each sequence [tokens, 128] fp32

    def inputs(self) -> dict[str, torch.Tensor]:
        names = ("index_q", "index_weights", "index_k_cache", "pooled_k_cache")
        return {name: getattr(self, name) for name in names}

    def plan(self, selection: SelectionConfig, **changed: Any) -> dict[str, Any]:
        bounds = {
            "index_source": selection,
            "topk": TOPK,
            "max_seq_len": 700,
            "max_rows": self.batch.rows,
            "block_tokens": self.block_tokens,
            "pooled_table": self.pooled_table,
        }
        return self.batch.plan() | bounds | changed

    def expected(self, selection: SelectionConfig) -> list[list[int]]:
        """The list of each row, its sequence's keys alone and side by side."""
        selector, found = selector_for(selection), []
        for seq, (rows, tokens) in enumerate(self.batch.sequences):
            for row in range(rows):
                pos = tokens - rows + row
                at = slice(len(found), len(found) + 1)
                if pos < 0:
                    found.append([-1] * TOPK)
                    continue
                store = store_keys(self.ops, self.keys[seq], 1, self.block_tokens, self.layout)
                keys = ResidentKeys(self.ops, self.layout, store, tokens, self.block_tokens)
                lists = torch.tensor([[0], [pos]], dtype=torch.int32, device=self.batch.device)
                query = SelectionQuery(self.index_q[at], self.index_weights[at], *lists, TOPK)
                is_short = tokens <= TOPK
                chosen = keys.all_positions(query) if is_short else selector.select(query, keys)
                found.append(chosen[0].tolist())
        return found + [[-1] * TOPK] * (self.batch.rows - len(found))


def make_index_batch(
    batch: Batch, backend: str, block_tokens: int = 64, layout: str = "fp8", seed: int = 1
) -> IndexBatch:
    made = torch.Generator().manual_seed(seed)
    device, stored = batch.device, index_layout(layout)
    ops = ops_of(backend, device.type)  # type: ignore[arg-type]
    num_pages, num_seqs = len(batch.kv_cache), len(batch.sequences)

    def pages(count: int) -> torch.Tensor:
        shape = count, stored.page_bytes
        return torch.full(shape, NAN_BYTE, dtype=torch.uint8, device=device)

    cache, pooled = pages(num_pages), pages(num_seqs * POOLED_PAGES)
    all_keys = []
    for seq, (_, tokens) in enumerate(batch.sequences):
        # neighbours are alike, so that blocks differ
        steps = torch.randn(tokens // 40 + 1, 128, generator=made).repeat_interleave(40, 0)
        keys = (2 * steps[:tokens] + torch.randn(tokens, 128, generator=made)).to(device)
        position = torch.arange(tokens, device=device)
        ids = batch.table[seq].long()[position // PAGE_TOKENS] * PAGE_TOKENS
        ops.write_index_rows(
            cache, ids + position % PAGE_TOKENS, ops.pack_index_rows(keys, stored), stored
        )
        all_keys.append(keys)
    numbers = torch.arange(num_seqs, device=device)
    lens = torch.tensor([tokens for _, tokens in batch.sequences], device=device).int()
    sums = torch.zeros(num_seqs, 128, device=device)
    base = numbers * (POOLED_PAGES * PAGE_TOKENS)
    table = batch.table.where(batch.table < num_pages, -1)
    ops.rebuild_pooled_keys(cache, table, lens, sums, numbers, pooled, base, block_tokens, stored)
    columns = torch.arange(POOLED_PAGES, device=device)
    pooled_table = (numbers[:, None] * POOLED_PAGES + columns).int()
    index_q = torch.randn(batch.rows, INDEX_HEADS, 128, generator=made).to(device)
    weights = torch.randn(batch.rows, INDEX_HEADS, generator=made).abs().to(device)
    shaped = cache.view(num_pages, PAGE_TOKENS, -1)
    places = index_q, weights, shaped, pooled, pooled_table
    return IndexBatch(batch, ops, stored, block_tokens, *places, tuple(all_keys))
