"""Write the k best entries of a row in their order, exactly, in one program.

A row longer than one block goes by in blocks, each beside the best of those before it.
"""

import triton
import triton.language as tl

from hisparse_kernels.gpu.kth_score import key_of, kth_score, score_of
from hisparse_kernels.gpu.write_taken import tile_columns, write_taken

MOST_IN_REGISTERS = 8192
_MOST_KEPT = 1 << 15  # two counts share 32 bits
_MANY_ROWS = 512  # then smaller programs, of which more fit an SM


def row_options(rows: int, num_columns: int, k: int, *, forced: bool = False) -> dict[str, object]:
    """Compile-time values for rows of that many columns, of which k are kept.

    Raises:
        ValueError: more are to be kept of a long row than a program can hold.
    """
    block = _block(num_columns)
    few_warps = rows >= _MANY_ROWS and not forced  # to force columns takes registers too
    most_warps = 16 if num_columns > block else 4 if few_warps else 8
    num_warps = min(max(block // 1024, 4), most_warps)
    return {
        **row_blocks(num_columns, k, num_warps, forced=forced),
        "num_warps": num_warps,
        "enable_fp_fusion": False,
    }


def row_blocks(num_columns: int, k: int, num_warps: int, *, forced: bool = False) -> dict[str, int]:
    """BLOCK, BLOCK_BEST, WRITE_BLOCK, WARPS for a program of so many warps; see `row_options`."""
    block = _block(num_columns)
    is_long = num_columns > block
    if is_long and k > _MOST_KEPT:
        raise ValueError(f"k is {k} of {num_columns} columns, must be <= {_MOST_KEPT}")
    written_each = 16 if forced or num_warps <= 4 else 32  # what a thread places at a time
    return {
        "BLOCK": block,
        # 0: the row is one block
        "BLOCK_BEST": max(int(triton.next_power_of_2(k)), 256) if is_long else 0,
        "WRITE_BLOCK": min(block, written_each * 32 * num_warps),
        "WARPS": num_warps,
    }


def _block(num_columns: int) -> int:
    return min(max(int(triton.next_power_of_2(num_columns)), 256), MOST_IN_REGISTERS)


@triton.jit
def best_columns(
    row_ptr,
    stride,
    num_columns,
    newest,
    k,
    ids_ptr,
    out_ptr,
    FORCED: tl.constexpr,
    ID_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_BEST: tl.constexpr,
    WRITE_BLOCK: tl.constexpr,
    WARPS: tl.constexpr,
) -> None:
    """Writes the columns of the k best scores, ascending, then -1; ties: the lowest column.

    With FORCED the first and the `newest` column beat all others, and any other can be taken.
    Instead of a column c, with `ids_ptr`: ids[c // ID_COLUMNS] * ID_COLUMNS + c % ID_COLUMNS.
    """
    if BLOCK_BEST == 0:
        column = tile_columns(BLOCK, WARPS)
        scores = _load_scores(row_ptr, stride, column, column < num_columns, newest, FORCED)
        bound, need, kept = kth_score(scores, None, k, None)
        if WRITE_BLOCK == BLOCK:
            value = _values_of(ids_ptr, 0, num_columns, ID_COLUMNS, BLOCK, WARPS)
            write_taken(scores, value, bound, need, out_ptr)
        else:
            _write_columns(
                row_ptr,
                stride,
                num_columns,
                newest,
                bound,
                need,
                ids_ptr,
                out_ptr,
                FORCED,
                ID_COLUMNS,
                WRITE_BLOCK,
                WARPS,
            )
    else:
        kept = _best_by_blocks(
            row_ptr,
            stride,
            num_columns,
            newest,
            k,
            out_ptr,
            FORCED,
            BLOCK,
            BLOCK_BEST,
            WRITE_BLOCK,
            WARPS,
        )
        for start in range(0, kept, BLOCK):
            place = start + tl.arange(0, BLOCK)
            column = tl.load(out_ptr + place, mask=place < kept, other=0)
            value = value_of(ids_ptr, column, place < kept, ID_COLUMNS)
            tl.store(out_ptr + place, value, mask=place < kept)
    pad_columns(kept, k, out_ptr, BLOCK)


@triton.jit
def pad_columns(kept, k, out_ptr, BLOCK: tl.constexpr) -> None:
    """-1 from `kept` on."""
    for start in range(kept, k, BLOCK):
        place = start + tl.arange(0, BLOCK)
        tl.store(out_ptr + place, tl.full([BLOCK], -1, dtype=tl.int32), mask=place < k)


@triton.jit
def _write_columns(
    row_ptr,
    stride,
    num_columns,
    newest,
    bound,
    need,
    ids_ptr,
    out_ptr,
    FORCED: tl.constexpr,
    ID_COLUMNS: tl.constexpr,
    WRITE_BLOCK: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Writes what is taken of a row, some columns at a time; see `write_taken`."""
    for start in range(0, num_columns, WRITE_BLOCK):
        column = start + tile_columns(WRITE_BLOCK, WARPS)
        scores = _load_scores(row_ptr, stride, column, column < num_columns, newest, FORCED)
        value = _values_of(ids_ptr, start, num_columns, ID_COLUMNS, WRITE_BLOCK, WARPS)
        taken, tied = write_taken(scores, value, bound, need, out_ptr)
        out_ptr += taken
        need -= tied


@triton.jit
def _best_by_blocks(
    row_ptr,
    stride,
    num_columns,
    newest,
    k,
    out_ptr,
    FORCED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_BEST: tl.constexpr,
    WRITE_BLOCK: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Writes the columns of the k best scores, ascending; how many they are."""
    kept, floor = k * 0, tl.full([], float("-inf"), tl.float32)
    for start in range(0, num_columns, BLOCK):
        column = start + tile_columns(BLOCK, WARPS)
        scores = _load_scores(row_ptr, stride, column, column < num_columns, newest, FORCED)
        best = _kept_columns(out_ptr, kept, tl.arange(0, BLOCK_BEST))
        best_scores = _load_scores(row_ptr, stride, best, best >= 0, newest, FORCED)
        bound, need, now_kept = kth_score(scores, best_scores, k, floor)
        # both are read again instead of held meanwhile: registers are short
        # ties go to the lowest column: to those of the blocks before
        taken, tied = _rewrite_kept(
            row_ptr,
            stride,
            newest,
            bound,
            need,
            kept,
            out_ptr,
            FORCED,
            BLOCK_BEST if BLOCK_BEST < WRITE_BLOCK else WRITE_BLOCK,
            WARPS,
        )
        scores = _load_scores(row_ptr, stride, column, column < num_columns, newest, FORCED)
        write_taken(scores, column, bound, need - tied, out_ptr + taken)
        tl.debug_barrier()
        kept = now_kept
        # of the next block only what beats the k best so far matters
        below = score_of(key_of(bound) - (need > 0).to(tl.uint32))
        floor = tl.where(kept == k, below, float("-inf"))
    return kept


@triton.jit
def _rewrite_kept(
    row_ptr,
    stride,
    newest,
    bound,
    need,
    kept,
    out_ptr,
    FORCED: tl.constexpr,
    WRITE_BLOCK: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Moves the columns that are still taken to the front; how many, and how many of them tied."""
    all_taken, all_tied = kept * 0, kept * 0
    for start in range(0, kept, WRITE_BLOCK):
        best = _kept_columns(out_ptr, kept, start + tile_columns(WRITE_BLOCK, WARPS))
        scores = _load_scores(row_ptr, stride, best, best >= 0, newest, FORCED)
        tl.debug_barrier()  # all have read what is now written over
        taken, tied = write_taken(scores, best, bound, need - all_tied, out_ptr + all_taken)
        all_taken += taken
        all_tied += tied
    return all_taken, all_tied


@triton.jit
def _kept_columns(out_ptr, kept, place):
    """The columns kept so far; -1 after them."""
    return tl.load(out_ptr + place, mask=place < kept, other=-1)


@triton.jit
def value_of(ids_ptr, column, inside, ID_COLUMNS: tl.constexpr) -> tl.tensor:
    """What is written of a column; see `best_columns`."""
    if ids_ptr is None:
        value = column
    else:
        block = tl.load(ids_ptr + column // ID_COLUMNS, mask=inside, other=0)
        value = block * ID_COLUMNS + column % ID_COLUMNS
    return value


@triton.jit
def _values_of(
    ids_ptr,
    start,
    num_columns,
    ID_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    WARPS: tl.constexpr,
):
    """`value_of` the columns of a tile; its runs of 128 columns read one id each, if they can."""
    column = start + tile_columns(BLOCK, WARPS)
    if (ids_ptr is None) | (ID_COLUMNS % 128 != 0):
        value = value_of(ids_ptr, column, column < num_columns, ID_COLUMNS)
    else:
        warps: tl.constexpr = column.shape[1] // 128
        run = tl.arange(0, warps)[None] * column.shape[0] + tl.arange(0, column.shape[0])[:, None]
        first = start + run * 128
        first = value_of(ids_ptr, first, first < num_columns, ID_COLUMNS)
        value = tl.reshape(first[:, :, None] + tl.arange(0, 128)[None, None], column.shape)
    return value


@triton.jit
def _load_scores(row_ptr, stride, column, inside, newest, FORCED: tl.constexpr):
    """Scores of some columns; -inf where not inside, inf where forced."""
    scores = tl.load(row_ptr + column.to(tl.int64) * stride, mask=inside, other=float("-inf"))
    if FORCED:  # finite, so that a legal column always beats an illegal one, never a forced one
        most = 3.4028234663852886e38
        scores = tl.where(scores == scores, scores, -most)
        scores = tl.where(scores > most, most, tl.where(scores < -most, -most, scores))
        scores = tl.where((column == 0) | (column == newest), float("inf"), scores)
        scores = tl.where(inside, scores, float("-inf"))
    return scores
