"""Queries and the index keys that they select from: what every contender of a case is given."""

from dataclasses import dataclass

import torch

from benchmarks.ops.inputs import INDEX, fill_pages, page_codes
from hisparse_kernels.index_logits import paged_index_logits_ref
from hisparse_kernels.index_rows import pack_index_rows_ref
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS

BLOCK_TOKENS = 128
_CHUNK_BLOCKS = 2048


@dataclass(frozen=True)
class Rows:
    """Rows of sequences of one length, a whole number of blocks; no two share a page.

    Attributes:
        query, weights: [rows, heads, 128] e4m3, [rows, heads] fp32.
        row_seq, row_pos: [rows] int32; rows of one sequence are adjacent.
        index_pages: [sequences * pages, page_bytes] uint8, sequence after sequence, in order.
        pooled_pages: [sequences * pooled pages, page_bytes] uint8, likewise; zeros fill the last.
        keys: tokens of each sequence.
    """

    query: torch.Tensor
    weights: torch.Tensor
    row_seq: torch.Tensor
    row_pos: torch.Tensor
    index_pages: torch.Tensor
    pooled_pages: torch.Tensor
    keys: int

    @property
    def num_rows(self) -> int:
        return len(self.row_pos)

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def num_sequences(self) -> int:
        return len(self.index_pages) * PAGE_TOKENS // self.keys

    @property
    def blocks(self) -> int:
        """Of each sequence."""
        return self.keys // BLOCK_TOKENS

    @property
    def newest_block(self) -> torch.Tensor:
        """[rows] int32, the block that holds the row itself."""
        return self.row_pos // BLOCK_TOKENS

    @property
    def page_table(self) -> torch.Tensor:
        """[sequences, pages] int32."""
        return self._table(self.index_pages)

    @property
    def pooled_table(self) -> torch.Tensor:
        """[sequences, pooled pages] int32."""
        return self._table(self.pooled_pages)

    def copy(self) -> "Rows":
        """The same values elsewhere, so that the L2 cache holds neither for the other."""
        tensors = {name: value for name, value in vars(self).items() if name != "keys"}
        return Rows(**{name: tensor.clone() for name, tensor in tensors.items()}, keys=self.keys)

    def token_logits_ref(self, some: torch.Tensor) -> torch.Tensor:
        """[some, keys] fp32 logits of all tokens for rows `some`, -inf after each row's own."""
        return self._logits_ref(some, self.index_pages, self.page_table, self.row_pos[some] + 1)

    def block_logits_ref(self, some: torch.Tensor) -> torch.Tensor:
        """[some, blocks] fp32 logits of pooled keys; inf in the forced blocks, -inf in later."""
        newest = self.newest_block[some]
        logits = self._logits_ref(some, self.pooled_pages, self.pooled_table, newest)
        logits = logits[:, : self.blocks]
        logits[:, 0] = torch.inf
        return logits.scatter_(1, newest[:, None].long(), torch.inf)

    def _logits_ref(
        self, some: torch.Tensor, pages: torch.Tensor, table: torch.Tensor, end: torch.Tensor
    ) -> torch.Tensor:
        where = pages, table, self.row_seq[some], end
        return paged_index_logits_ref(self.query[some], self.weights[some], *where, INDEX)

    def _table(self, pages: torch.Tensor) -> torch.Tensor:
        number = torch.arange(len(pages), dtype=torch.int32, device=pages.device)
        return number.view(self.num_sequences, -1)


def pool_pages(index_pages: torch.Tensor, keys: int) -> torch.Tensor:
    """Pooled pages of sequences of `keys` tokens: each block's mean, in pages of their own."""
    sequences, blocks = len(index_pages) * PAGE_TOKENS // keys, keys // BLOCK_TOKENS
    padded = -(-blocks // PAGE_TOKENS) * PAGE_TOKENS
    means = index_pages.new_zeros(sequences * blocks, INDEX_DIM, dtype=torch.float32)
    pages_each = BLOCK_TOKENS // PAGE_TOKENS
    for mean, pages in zip(
        means.split(_CHUNK_BLOCKS), index_pages.split(_CHUNK_BLOCKS * pages_each), strict=True
    ):
        codes, scales = page_codes(pages)
        stored = codes.float() * scales[:, None]
        torch.mean(stored.view(-1, BLOCK_TOKENS, INDEX_DIM), 1, out=mean)
    means = means.view(sequences, blocks, INDEX_DIM)
    means = torch.nn.functional.pad(means, (0, 0, 0, padded - blocks))
    pooled = index_pages.new_empty(sequences * padded // PAGE_TOKENS, INDEX.page_bytes)
    fill_pages(pooled, pack_index_rows_ref(means.flatten(0, 1), INDEX))
    return pooled
