"""How much of a row's top-k lies in the blocks that were kept last: a sign of lost recall."""

import torch
import triton
import triton.language as tl

from hisparse_kernels.gpu.kth_score import key_of

_RANK_TILE = 16
_BLOCK_POSITIONS = 1024


def tail_share_triton(
    positions: torch.Tensor,
    block_ids: torch.Tensor,
    block_logits: torch.Tensor,
    newest_block: torch.Tensor,
    block_tokens: int,
    most_share: float,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `tail_share`. One program for each row."""
    rows, num_kept = block_ids.shape
    if out is None:
        share = block_logits.new_empty(rows)
        out = share, torch.empty_like(share, dtype=torch.bool)
    if rows:
        _tail_share_kernel[(rows,)](
            positions.contiguous(),
            block_ids.contiguous(),
            block_logits,
            *block_logits.stride(),
            newest_block.contiguous(),
            out[0],
            out[1].view(torch.uint8),
            positions.shape[1],
            num_kept,
            block_tokens,
            most_share,
            BLOCK_KEPT=max(16, triton.next_power_of_2(num_kept)),
            BLOCK_POSITIONS=_BLOCK_POSITIONS,
            RANK_TILE=_RANK_TILE,
            num_warps=4,
            maxnreg=128,  # never reached: without a bound ptxas spills for more programs
            enable_fp_fusion=False,
        )
    return out


@triton.jit(do_not_specialize=["topk", "num_kept"])
def _tail_share_kernel(
    positions_ptr,
    ids_ptr,
    logits_ptr,
    row_stride,
    column_stride,
    newest_ptr,
    share_ptr,
    needs_more_ptr,
    topk,
    num_kept,
    block_tokens,
    most_share,
    BLOCK_KEPT: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    RANK_TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    newest = tl.load(newest_ptr + row)
    positions_ptr += row * topk
    ids_ptr += row * num_kept
    scores = (logits_ptr + row * row_stride, column_stride, newest)
    found, valid, held = newest * 0, newest * 0, newest * 0
    if newest >= 0:  # a padding row costs a load and two stores
        held, bound_key, bound_id = _first_of_the_worst(
            ids_ptr, num_kept, scores, BLOCK_KEPT, RANK_TILE
        )
        for start in range(0, topk, BLOCK_POSITIONS):
            place = start + tl.arange(0, BLOCK_POSITIONS)
            position = tl.load(positions_ptr + place, mask=place < topk, other=-1)
            block = tl.where(position >= 0, position // block_tokens, -1)
            key = _kept_keys(block, scores)
            is_worst = (key < bound_key) | ((key == bound_key) & (block >= bound_id))
            found += tl.sum((is_worst & (block >= 0)).to(tl.int32))
            valid += tl.sum((block >= 0).to(tl.int32))
    share = tl.div_rn(found.to(tl.float32), tl.maximum(valid, 1).to(tl.float32))
    tl.store(share_ptr + row, share)
    tl.store(needs_more_ptr + row, ((share > most_share) & (held <= newest)).to(tl.uint8))


@triton.jit
def _first_of_the_worst(ids_ptr, num_kept, scores, BLOCK: tl.constexpr, RANK_TILE: tl.constexpr):
    """How many blocks are kept, and key and id of the best block of the worst quarter.

    Without such a block the key is 0, which no kept block's is below or at.
    """
    own = tl.arange(0, BLOCK)
    block = tl.load(ids_ptr + own, mask=own < num_kept, other=-1)
    key = _kept_keys(block, scores)
    rank = tl.zeros([BLOCK], tl.int32)
    for first in range(0, num_kept, RANK_TILE):
        other = first + tl.arange(0, RANK_TILE)
        rival = tl.load(ids_ptr + other, mask=other < num_kept, other=-1)
        rival_key = _kept_keys(rival, scores)
        # [RANK_TILE, BLOCK]: a thread holds a column, so its sum needs no other thread
        is_better = rival_key[:, None] > key[None, :]
        is_tie = (rival_key[:, None] == key[None, :]) & (rival[:, None] < block[None, :])
        rank += tl.sum((is_better | is_tie).to(tl.int32), 0)
    held = tl.sum((block >= 0).to(tl.int32))
    is_bound = (block >= 0) & (rank == held - held // 4)
    bound_key = tl.max(tl.where(is_bound, key, 0))
    return held, bound_key, tl.max(tl.where(is_bound, block, -1))


@triton.jit
def _kept_keys(block, scores):
    """Keys in the order in which `block_topm` takes blocks; 0 for -1."""
    row_ptr, column_stride, newest = scores
    score = tl.load(row_ptr + block.to(tl.int64) * column_stride, mask=block >= 0, other=0.0)
    most = 3.4028234663852886e38
    score = tl.where(score == score, score, -most)
    score = tl.where(score > most, most, tl.where(score < -most, -most, score))
    forced = (block == 0) | (block == newest)
    return tl.where(block >= 0, tl.where(forced, 0xFFFFFFFF, key_of(score)), 0)
