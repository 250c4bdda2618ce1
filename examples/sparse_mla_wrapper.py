"""Sparse MLA over an engine's own paged KV cache, in place of FlashInfer's dense wrapper.

Run it with `python examples/sparse_mla_wrapper.py`, on a GPU if there is one. Three decode steps of
three sequences: `plan` once a step, in each layer either a selection or the list of the layer
before. FlashInfer's metadata object would do as well as ours; it need not be installed.
"""

import sys

import torch

from hisparse_kernels.index_rows import pack_index_rows, write_index_rows
from hisparse_kernels.layouts import index_layout
from hisparse_kernels.pool_keys import rebuild_pooled_keys
from hisparse_sidecar import BatchHiSparseMLAPagedAttentionWrapper, MLAPlanMetadata, SelectionConfig

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS, INDEX_HEADS, PAGE, TOPK, STEPS = 8, 4, 64, 256, 3
LENGTHS, PAGES_EACH, BLOCK = [2000, 900, 130], 40, 128
NUM_SEQS = len(LENGTHS)
SELECTION = SelectionConfig("hisa", num_kept_blocks=8)
INDEX = index_layout("fp8")


def main() -> None:
    """Plans and runs the steps; tells what each attended to."""
    torch.manual_seed(0)
    workspace = torch.empty(32 << 20, dtype=torch.uint8, device=DEVICE)
    wrapper = BatchHiSparseMLAPagedAttentionWrapper(workspace)
    # what an engine has: pages of KV rows and of index keys, under the same page ids
    num_pages = NUM_SEQS * PAGES_EACH
    kv_cache = torch.randn(num_pages, PAGE, 576, device=DEVICE).to(torch.bfloat16)
    block_tables = torch.randperm(num_pages, device=DEVICE).int().view(NUM_SEQS, PAGES_EACH)
    index_k_cache = filled_index_pages(num_pages)
    # and what HISA adds: a pooled key for each block, one page of 64 of them for each sequence
    pooled_k_cache = torch.zeros(NUM_SEQS, INDEX.page_bytes, dtype=torch.uint8, device=DEVICE)
    pooled_table = torch.arange(NUM_SEQS, device=DEVICE).int()[:, None]
    starts = torch.arange(NUM_SEQS + 1, device=DEVICE).int()

    for step in range(STEPS):
        seq_lens = torch.tensor(LENGTHS, device=DEVICE).int() + step
        pool_index_keys(index_k_cache, block_tables, seq_lens, pooled_k_cache)
        wrapper.plan(
            metadata=MLAPlanMetadata.dense(starts, block_tables, seq_lens, max_q_len=1),
            num_heads=HEADS,
            sm_scale=576**-0.5,
            q_data_type=torch.bfloat16,
            kv_data_type=torch.bfloat16,
            page_size=PAGE,
            index_source=SELECTION,
            topk=TOPK,
            max_seq_len=PAGES_EACH * PAGE,
            block_tokens=BLOCK,
            pooled_table=pooled_table,
        )
        query = torch.randn(NUM_SEQS, HEADS, 576, device=DEVICE).to(torch.bfloat16)
        topk_indices = wrapper.select(
            index_q=torch.randn(NUM_SEQS, INDEX_HEADS, 128, device=DEVICE),
            index_weights=torch.rand(NUM_SEQS, INDEX_HEADS, device=DEVICE),
            index_k_cache=index_k_cache,
            pooled_k_cache=pooled_k_cache,
        )
        for layer in range(2):  # layers that share the selection
            out, lse = wrapper.run(
                query=query, kv_cache=kv_cache, topk_indices=topk_indices, return_lse=True
            )
            counts = (topk_indices >= 0).sum(1).tolist()
            sys.stdout.write(
                f"step {step} layer {layer}: {counts} of {seq_lens.tolist()} tokens, "
                f"output {list(out.shape)}, lse to base 2 {lse.mean(1).tolist()}\n"
            )


def filled_index_pages(num_pages: int) -> torch.Tensor:
    """Random index keys, as an engine's indexer would have stored them."""
    keys = torch.randn(num_pages * PAGE, 128, device=DEVICE)
    pages = torch.zeros(num_pages, INDEX.page_bytes, dtype=torch.uint8, device=DEVICE)
    rows = pack_index_rows(keys, INDEX)
    write_index_rows(pages, torch.arange(len(keys), device=DEVICE), rows, INDEX)
    return pages


def pool_index_keys(
    index_k_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    pooled_k_cache: torch.Tensor,
) -> None:
    """All pooled keys anew: once after a prefill. A decode step appends (`append_index_rows`)."""
    numbers = torch.arange(NUM_SEQS, device=DEVICE)
    sums = torch.zeros(NUM_SEQS, 128, device=DEVICE)
    places = sums, numbers, pooled_k_cache, numbers * 64
    rebuild_pooled_keys(index_k_cache, block_tables, seq_lens, *places, BLOCK, INDEX)


if __name__ == "__main__":
    main()
