"""Write the k best entries of a row in their order, exactly, in one program.

A row longer than one block goes by in blocks, each beside the best of those before it.
"""

import triton
import triton.language as tl

from hisparse_kernels.gpu.kth_key import FORCED_KEY, kth_key, ordered_keys

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
    num_warps = min(max(block // 512, 4), most_warps)
    return {
        **row_blocks(num_columns, k, num_warps, forced=forced),
        "num_warps": num_warps,
        "enable_fp_fusion": False,
    }


def row_blocks(num_columns: int, k: int, num_warps: int, *, forced: bool = False) -> dict[str, int]:
    """BLOCK, BLOCK_BEST and WRITE_BLOCK for a program of that many warps; see `row_options`."""
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
) -> None:
    """Writes the columns of the k best scores, ascending, then -1; ties: the lowest column.

    With FORCED the first and the `newest` column beat all others, and any other can be taken.
    Instead of a column c, with `ids_ptr`: ids[c // ID_COLUMNS] * ID_COLUMNS + c % ID_COLUMNS.
    """
    if BLOCK_BEST == 0:
        column = tl.arange(0, BLOCK)
        keys = _load_keys(row_ptr, stride, column, column < num_columns, newest, FORCED)
        bound, need, kept = kth_key(keys, None, k, (k * 0).to(tl.uint32), FORCED)
        if WRITE_BLOCK == BLOCK:
            value = _value_of(ids_ptr, column, column < num_columns, ID_COLUMNS)
            write_taken(keys, value, bound, need, out_ptr)
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
        )
        for start in range(0, kept, BLOCK):
            place = start + tl.arange(0, BLOCK)
            column = tl.load(out_ptr + place, mask=place < kept, other=0)
            value = _value_of(ids_ptr, column, place < kept, ID_COLUMNS)
            tl.store(out_ptr + place, value, mask=place < kept)
    pad_columns(kept, k, out_ptr, BLOCK)


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
):
    """Writes what is taken of a row, some columns at a time; see `write_taken`."""
    for start in range(0, num_columns, WRITE_BLOCK):
        column = start + tl.arange(0, WRITE_BLOCK)
        inside = column < num_columns
        keys = _load_keys(row_ptr, stride, column, inside, newest, FORCED)
        value = _value_of(ids_ptr, column, inside, ID_COLUMNS)
        taken, tied = write_taken(keys, value, bound, need, out_ptr)
        out_ptr += taken
        need -= tied


@triton.jit
def write_taken(keys, value, bound, need, out_ptr) -> tuple[tl.tensor, tl.tensor]:
    """Writes the values of keys above the bound and of the first `need` of those equal to it.

    Returns:
        How many are written, and how many of these equal the bound.
    """
    above, tied = keys > bound, (keys == bound) & (keys != 0)
    # both counts in one scan
    both = (above.to(tl.uint32) << 16) + tied.to(tl.uint32)
    total = tl.sum(both)
    before = tl.cumsum(both, 0) - both
    tied_before = (before & 0xFFFF).to(tl.int32)
    place = (before >> 16).to(tl.int32) + tl.minimum(tied_before, need)
    tl.store(out_ptr + place, value, mask=above | (tied & (tied_before < need)))
    num_tied = tl.minimum((total & 0xFFFF).to(tl.int32), need)
    return (total >> 16).to(tl.int32) + num_tied, num_tied


@triton.jit
def pad_columns(kept, k, out_ptr, BLOCK: tl.constexpr) -> None:
    """-1 from `kept` on."""
    for start in range(kept, k, BLOCK):
        place = start + tl.arange(0, BLOCK)
        tl.store(out_ptr + place, tl.full([BLOCK], -1, dtype=tl.int32), mask=place < k)


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
):
    """Writes the columns of the k best scores, ascending; how many they are."""
    kept, floor = k * 0, (k * 0).to(tl.uint32)
    for start in range(0, num_columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        keys = _load_keys(row_ptr, stride, column, column < num_columns, newest, FORCED)
        best = _kept_columns(out_ptr, kept, BLOCK_BEST)
        best_keys = _load_keys(row_ptr, stride, best, best >= 0, newest, FORCED)
        bound, need, now_kept = kth_key(keys, best_keys, k, floor, FORCED)
        # both are read again instead of held meanwhile: registers are short
        best = _kept_columns(out_ptr, kept, BLOCK_BEST)
        tl.debug_barrier()  # all have read what is now written over
        # ties go to the lowest column: to those of the blocks before
        taken, tied = write_taken(best_keys, best, bound, need, out_ptr)
        keys = _load_keys(row_ptr, stride, column, column < num_columns, newest, FORCED)
        write_taken(keys, column, bound, need - tied, out_ptr + taken)
        tl.debug_barrier()
        kept = now_kept
        # of the next block only what beats the k best so far matters
        floor = tl.where(kept == k, tl.maximum(bound, 1) - (need > 0).to(tl.uint32), 0)
    return kept


@triton.jit
def _kept_columns(out_ptr, kept, BLOCK_BEST: tl.constexpr):
    """The columns kept so far; -1 after them."""
    lane = tl.arange(0, BLOCK_BEST)
    return tl.load(out_ptr + lane, mask=lane < kept, other=-1)


@triton.jit
def _value_of(ids_ptr, column, inside, ID_COLUMNS: tl.constexpr):
    if ids_ptr is None:
        value = column
    else:
        block = tl.load(ids_ptr + column // ID_COLUMNS, mask=inside, other=0)
        value = block * ID_COLUMNS + column % ID_COLUMNS
    return value


@triton.jit
def _load_keys(row_ptr, stride, column, inside, newest, FORCED: tl.constexpr):
    """Keys of some columns; 0 where not inside."""
    scores = tl.load(row_ptr + column.to(tl.int64) * stride, mask=inside, other=float("-inf"))
    if FORCED:  # finite, so that a legal column always beats an illegal one, never a forced one
        most = 3.4028234663852886e38
        scores = tl.where(scores == scores, scores, -most)
        scores = tl.where(scores > most, most, tl.where(scores < -most, -most, scores))
        forced = (column == 0) | (column == newest)
        keys = tl.where(forced, FORCED_KEY, ordered_keys(scores))
        keys = tl.where(inside, keys, 0)
    else:
        keys = ordered_keys(scores)
    return keys
