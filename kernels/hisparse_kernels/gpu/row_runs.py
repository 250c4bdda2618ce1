"""Runs of a program's rows: those that see its tile of keys, and those of one sequence."""

import triton
import triton.language as tl


@triton.jit
def rows_that_see(
    start_ptr,
    end_ptr,
    first_row,
    last_row,
    first_key,
    BLOCK_KEYS: tl.constexpr,
    MOST_ROWS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The shortest run [begin, end) of the program's rows with all rows that see its tile."""
    row = first_row + tl.arange(0, MOST_ROWS)
    start = tl.load(start_ptr + row, mask=row < last_row, other=0)
    end = tl.load(end_ptr + row, mask=row < last_row, other=0)
    sees = (start < end) & (start < first_key + BLOCK_KEYS) & (end > first_key)
    begin = tl.min(tl.where(sees, row, last_row))
    return begin, tl.maximum(tl.max(tl.where(sees, row + 1, first_row)), begin)


@triton.jit
def mask_rows(out_ptr, num_keys, key, begin, end) -> None:
    """-inf at the tile's keys in rows [begin, end)."""
    nothing = tl.full(key.shape, float("-inf"), dtype=tl.float32)
    for i in range(end - begin):
        row_ptr = out_ptr + (begin + i).to(tl.int64) * num_keys
        tl.store(row_ptr + key, nothing, mask=key < num_keys)


@triton.jit
def run_of_rows(
    seq_ptr, ends_ptr, begin, last, MOST_ROWS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Sequence of row `begin`, the end of its run of rows before `last`, and its greatest end.

    The greatest end is 0 in a run of padding rows.
    """
    row = begin + tl.arange(0, MOST_ROWS)
    seq = tl.load(seq_ptr + begin)
    same = tl.load(seq_ptr + row, mask=row < last, other=-1) == seq
    end = tl.min(tl.where(same & (row < last), last, tl.minimum(row, last)))
    most = tl.max(tl.load(ends_ptr + row, mask=row < end, other=0))
    return seq, end, tl.where(seq < 0, 0, most)
