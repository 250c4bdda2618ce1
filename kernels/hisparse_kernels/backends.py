"""The ops of one backend, in one value that a pipeline can hold."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hisparse_kernels import (
    append_rows,
    block_topm,
    index_logits,
    index_rows,
    kv_rows,
    locate_rows,
    look_up_blocks,
    paged_batch,
    pool_keys,
    pool_pages,
    prefix_positions,
    refine_logits,
    resolve,
    route_heads,
    score_positions,
    select_blocks,
    select_tokens,
    sparse_mla,
    spill,
    swap_in,
    tail_share,
    topk,
)

_Op = Callable[..., torch.Tensor]
_InPlaceOp = Callable[..., None]
_PairOp = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Ops:
    """Every op under its public name; all backends have the same signatures and meanings."""

    pack_kv_rows: _Op
    unpack_kv_rows: _Op
    pack_index_rows: _Op
    unpack_index_rows: _Op
    write_index_rows: _InPlaceOp
    read_index_rows: _Op
    quantize_index_q: _PairOp
    append_index_rows: _InPlaceOp
    rebuild_pooled_keys: _InPlaceOp
    resum_open_blocks: _InPlaceOp
    append_rows: _InPlaceOp
    pool_full_pages: _InPlaceOp
    index_logits: _Op
    paged_index_logits: _Op
    block_topm: _Op
    refine_logits: _Op
    topk: _Op
    candidate_positions: _Op
    prefix_positions: _Op
    lay_out_batch: _InPlaceOp
    locate_rows: _Op
    select_blocks: _Op
    look_up_blocks: _Op
    select_tokens: _Op
    tail_share: _PairOp
    route_heads: _Op
    score_positions: _Op
    resolve: _Op
    release_items: _InPlaceOp
    swap_in: _InPlaceOp
    swap_in_blocks: _InPlaceOp
    spill: _InPlaceOp
    sparse_mla: _PairOp


def reference_ops() -> Ops:
    """The `_ref` twins in plain PyTorch: the CPU backend, and the oracle of all others."""
    return Ops(
        pack_kv_rows=kv_rows.pack_kv_rows_ref,
        unpack_kv_rows=kv_rows.unpack_kv_rows_ref,
        pack_index_rows=index_rows.pack_index_rows_ref,
        unpack_index_rows=index_rows.unpack_index_rows_ref,
        write_index_rows=index_rows.write_index_rows_ref,
        read_index_rows=index_rows.read_index_rows_ref,
        quantize_index_q=index_rows.quantize_index_q_ref,
        append_index_rows=pool_keys.append_index_rows_ref,
        rebuild_pooled_keys=pool_keys.rebuild_pooled_keys_ref,
        resum_open_blocks=pool_keys.resum_open_blocks_ref,
        append_rows=append_rows.append_rows_ref,
        pool_full_pages=pool_pages.pool_full_pages_ref,
        index_logits=index_logits.index_logits_ref,
        paged_index_logits=index_logits.paged_index_logits_ref,
        block_topm=block_topm.block_topm_ref,
        refine_logits=refine_logits.refine_logits_ref,
        topk=topk.topk_ref,
        candidate_positions=topk.candidate_positions_ref,
        prefix_positions=prefix_positions.prefix_positions_ref,
        lay_out_batch=paged_batch.lay_out_batch_ref,
        locate_rows=locate_rows.locate_rows_ref,
        select_blocks=select_blocks.select_blocks_ref,
        look_up_blocks=look_up_blocks.look_up_blocks_ref,
        select_tokens=select_tokens.select_tokens_ref,
        tail_share=tail_share.tail_share_ref,
        route_heads=route_heads.route_heads_ref,
        score_positions=score_positions.score_positions_ref,
        resolve=resolve.resolve_ref,
        release_items=resolve.release_items_ref,
        swap_in=swap_in.swap_in_ref,
        swap_in_blocks=swap_in.swap_in_blocks_ref,
        spill=spill.spill_ref,
        sparse_mla=sparse_mla.sparse_mla_ref,
    )
