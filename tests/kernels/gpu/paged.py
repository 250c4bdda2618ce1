"""Packed batches over paged rows, and what is in them told with plain loops."""

import dataclasses
from collections.abc import Sequence

import torch

from hisparse_kernels.paged_batch import PagedBatch

# (query rows, tokens): no rows, no tokens, one of each, more rows than tokens, ends within pages
SEQUENCES = ((1, 5), (0, 9), (3, 17), (2, 0), (1, 1), (4, 3), (2, 64), (5, 33))


def paged_batch(
    sequences: Sequence[tuple[int, int]] = SEQUENCES,
    *,
    page_tokens: int = 8,
    packed: bool = True,
    causal: bool = True,
    seed: int = 0,
) -> PagedBatch:
    """Sequences of (query rows, tokens) whose pages are spread over a pool."""
    made = torch.Generator().manual_seed(seed)
    counts = [-(-tokens // page_tokens) for _, tokens in sequences]
    ids = torch.randperm(sum(counts) + 3, generator=made).int()
    qo_indptr, kv_indptr = ends_of([rows for rows, _ in sequences]), ends_of(counts)
    lens = torch.tensor([tokens for _, tokens in sequences]).int()
    if packed:
        return PagedBatch(qo_indptr, lens, ids[: sum(counts)], kv_indptr, page_tokens, causal)
    table = torch.full((len(sequences), max(counts, default=0) + 2), 10**6, dtype=torch.int32)
    for seq, count in enumerate(counts):
        table[seq, :count] = ids[int(kv_indptr[seq]) :][:count]
    return PagedBatch(qo_indptr, lens, table, None, page_tokens, causal)


def ends_of(counts: Sequence[int]) -> torch.Tensor:
    return torch.nn.functional.pad(torch.tensor(counts).cumsum(0), (1, 0)).int()


def moved_to(batch: PagedBatch, device: str) -> PagedBatch:
    names = ("qo_indptr", "kv_lens", "kv_pages", "kv_indptr")
    tensors = {name: getattr(batch, name) for name in names}
    placed = {name: None if one is None else one.to(device) for name, one in tensors.items()}
    return dataclasses.replace(batch, **placed)


def spans(batch: PagedBatch, num_rows: int) -> list[tuple[int, int]]:
    """(sequence, tokens seen) of each row; (-1, 0) for padding."""
    found = []
    for seq in range(batch.num_seqs):
        first, end = batch.qo_indptr[seq : seq + 2].tolist()
        for row in range(first, end):
            seen = int(batch.kv_lens[seq])
            found.append((seq, max(0, seen - (end - row) + 1 if batch.causal else seen)))
    return (found + [(-1, 0)] * num_rows)[:num_rows]


def pages_of(batch: PagedBatch, seq: int) -> list[int]:
    count = -(-int(batch.kv_lens[seq]) // batch.page_tokens)
    if batch.kv_indptr is None:
        return batch.kv_pages[seq, :count].tolist()
    return batch.kv_pages[int(batch.kv_indptr[seq]) :][:count].tolist()
