"""Choose the top-k tokens of each row's blocks, in two launches."""

import torch

from hisparse_kernels.gpu.refine_logits import refine_into
from hisparse_kernels.gpu.topk import topk_positions_triton
from hisparse_kernels.layouts import IndexLayout
from hisparse_kernels.refine_logits import HostBlocks


def select_tokens_triton(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    index_pages: torch.Tensor,
    block_slots: torch.Tensor,
    block_ids: torch.Tensor,
    row_pos: torch.Tensor,
    block_tokens: int,
    k: int,
    layout: IndexLayout,
    logits: torch.Tensor,
    out: torch.Tensor | None = None,
    host: HostBlocks | None = None,
    *,
    as_rows: bool = False,
) -> torch.Tensor:
    """See `select_tokens`.

    A last program to arrive could choose in the first launch; it was slower by 3 us and more: what
    chooses needs other warps and registers than what scores.
    """
    if out is None:
        out = block_ids.new_empty(block_ids.shape[0], k)
    if block_ids.numel() == 0:
        return out.fill_(-1)
    block_ids, block_slots = block_ids.contiguous(), block_slots.contiguous()
    refine_into(
        index_q,
        index_weights,
        index_pages,
        block_slots,
        block_ids,
        row_pos,
        block_tokens,
        layout,
        logits,
        host,
        write_all=True,
    )
    named = block_slots if as_rows else block_ids
    return topk_positions_triton(logits, block_ids, named, block_tokens, k, out)
