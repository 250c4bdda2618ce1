"""Write what is taken of a tile of scores, in the order of its columns."""

import triton
import triton.language as tl

from hisparse_kernels.gpu.in_place import store_in_place


@triton.jit
def tile_columns(BLOCK: tl.constexpr, WARPS: tl.constexpr) -> tl.tensor:
    """[rows, warps * 128] int32, the columns of a tile: runs of 128, those of a warp in a row.

    Two dimensions, so that Triton has one way alone to spread them: a warp reads a run at once.
    """
    warps: tl.constexpr = WARPS if WARPS * 128 <= BLOCK else BLOCK // 128
    rows: tl.constexpr = BLOCK // (warps * 128)
    place = tl.arange(0, warps * 128)
    first = place // 128 * (rows * 128) + place % 128
    return first[None] + tl.arange(0, rows)[:, None] * 128


@triton.jit
def write_taken(scores, value, bound, need, out_ptr) -> tuple[tl.tensor, tl.tensor]:
    """Writes the values of scores above the bound and of the first `need` of those equal to it.

    Args:
        scores: [rows, warps * 128] fp32, no more than 8 rows, in the order of `tile_columns`.
        value: [rows, warps * 128] int32.
        bound: fp32, see `kth_score`.
        need: int32, see `kth_score`.
        out_ptr: where the first value goes.

    Returns:
        How many are written, and how many of these equal the bound.
    """
    taken = (scores > bound).to(tl.int32)
    num_tied = need * 0
    if need > 0:
        tied = ((scores == bound) & (scores > float("-inf"))).to(tl.int32)
        before, total = _count_before(tied)
        taken += tl.where(before < need, tied, 0)
        num_tied = tl.minimum(total, need)
    place, num_taken = _count_before(taken)
    store_in_place(out_ptr + place, value, taken > 0)
    return num_taken, num_tied


@triton.jit
def _count_before(flags):
    """For each 0 or 1 of a tile how many 1 come before it in the order of columns; and all of them.

    A lane's counts of up to 8 runs go through its warp together, one byte each: they are 128 at
    most. Warps exchange their sums alone.
    """
    rows: tl.constexpr = flags.shape[0]
    warps: tl.constexpr = flags.shape[1] // 128
    fours = tl.reshape(flags, [rows, warps, 32, 4])
    within = tl.cumsum(fours, 3) - fours
    byte = (tl.arange(0, rows) * 8).to(tl.uint64)[:, None, None]
    of_lane = tl.sum(tl.sum(fours, 3).to(tl.uint64) << byte, 0)
    before_lane = tl.cumsum(of_lane, 1) - of_lane
    # the same in every lane, so that no value has to move to another
    of_warp = tl.broadcast_to(tl.sum(of_lane, 1)[:, None], [warps, 32])
    of_run = _byte(of_warp[None], byte)
    of_warp = tl.sum(of_run, 0)
    before_warp = tl.cumsum(of_warp, 0) - of_warp
    before_run = tl.cumsum(of_run, 0) - of_run + before_warp[None]
    before = (before_run + _byte(before_lane[None], byte))[:, :, :, None] + within
    return tl.reshape(before, [rows, warps * 128]), tl.sum(of_warp) // 32


@triton.jit
def _byte(packed, shift):
    return ((packed >> shift) & 0xFF).to(tl.int32)
