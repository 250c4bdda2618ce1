"""The Triton ops in one value, for CUDA tensors; in Triton's interpreter also for CPU tensors."""

from dataclasses import replace

from hisparse_kernels.backends import Ops
from hisparse_kernels.gpu.append_rows import append_rows_triton
from hisparse_kernels.gpu.block_topm import block_topm_triton
from hisparse_kernels.gpu.flash_mla import sparse_mla_fastest
from hisparse_kernels.gpu.index_logits import index_logits_triton, paged_index_logits_triton
from hisparse_kernels.gpu.index_rows import (
    pack_index_rows_triton,
    quantize_index_q_triton,
    read_index_rows_triton,
    unpack_index_rows_triton,
    write_index_rows_triton,
)
from hisparse_kernels.gpu.kv_rows import pack_kv_rows_triton, unpack_kv_rows_triton
from hisparse_kernels.gpu.locate_rows import locate_rows_triton
from hisparse_kernels.gpu.look_up_blocks import look_up_blocks_triton
from hisparse_kernels.gpu.paged_batch import lay_out_batch_triton
from hisparse_kernels.gpu.pool_keys import (
    append_index_rows_triton,
    rebuild_pooled_keys_triton,
    resum_open_blocks_triton,
)
from hisparse_kernels.gpu.pool_pages import pool_full_pages_triton
from hisparse_kernels.gpu.prefix_positions import prefix_positions_triton
from hisparse_kernels.gpu.refine_logits import refine_logits_triton
from hisparse_kernels.gpu.resolve import release_items_triton, resolve_triton
from hisparse_kernels.gpu.route_heads import route_heads_triton
from hisparse_kernels.gpu.score_positions import score_positions_triton
from hisparse_kernels.gpu.select_blocks import select_blocks_triton
from hisparse_kernels.gpu.select_tokens import select_tokens_triton
from hisparse_kernels.gpu.sparse_mla import sparse_mla_triton
from hisparse_kernels.gpu.sparse_mla_flash import sparse_mla_flash
from hisparse_kernels.gpu.sparse_mla_sm100 import sparse_mla_sm100
from hisparse_kernels.gpu.spill import spill_triton
from hisparse_kernels.gpu.swap_in import swap_in_blocks_triton, swap_in_triton
from hisparse_kernels.gpu.tail_share import tail_share_triton
from hisparse_kernels.gpu.topk import candidate_positions_triton, topk_triton


def fastest_ops() -> Ops:
    """The Triton kernels, and installed peers' for what they do faster."""
    return replace(triton_ops(), sparse_mla=sparse_mla_fastest)


def flash_mla_ops() -> Ops:
    """The Triton kernels, and FlashMLA's for all attention: its bits depend on the batch."""
    return replace(triton_ops(), sparse_mla=sparse_mla_flash)


def gluon_sm100_ops() -> Ops:
    """The Triton kernels, and attention's body for sm_100, which has never run."""
    return replace(triton_ops(), sparse_mla=sparse_mla_sm100)


def triton_ops() -> Ops:
    """The Triton kernels; equal to `reference_ops()` in signatures and meanings."""
    return Ops(
        pack_kv_rows=pack_kv_rows_triton,
        unpack_kv_rows=unpack_kv_rows_triton,
        pack_index_rows=pack_index_rows_triton,
        unpack_index_rows=unpack_index_rows_triton,
        write_index_rows=write_index_rows_triton,
        read_index_rows=read_index_rows_triton,
        quantize_index_q=quantize_index_q_triton,
        append_index_rows=append_index_rows_triton,
        rebuild_pooled_keys=rebuild_pooled_keys_triton,
        resum_open_blocks=resum_open_blocks_triton,
        append_rows=append_rows_triton,
        pool_full_pages=pool_full_pages_triton,
        index_logits=index_logits_triton,
        paged_index_logits=paged_index_logits_triton,
        block_topm=block_topm_triton,
        refine_logits=refine_logits_triton,
        topk=topk_triton,
        candidate_positions=candidate_positions_triton,
        prefix_positions=prefix_positions_triton,
        lay_out_batch=lay_out_batch_triton,
        locate_rows=locate_rows_triton,
        select_blocks=select_blocks_triton,
        look_up_blocks=look_up_blocks_triton,
        select_tokens=select_tokens_triton,
        tail_share=tail_share_triton,
        route_heads=route_heads_triton,
        score_positions=score_positions_triton,
        resolve=resolve_triton,
        release_items=release_items_triton,
        swap_in=swap_in_triton,
        swap_in_blocks=swap_in_blocks_triton,
        spill=spill_triton,
        sparse_mla=sparse_mla_triton,
    )
