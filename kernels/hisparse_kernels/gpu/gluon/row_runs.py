"""Rows of a ragged range by the tile of keys that a program scores: which see it, what they get."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from hisparse_kernels.gpu.gluon.layouts import vector_layout


@gluon.jit
def rows_that_see(
    start_ptr,
    end_ptr,
    first_row,
    last_row,
    first_key,
    KEYS: gl.constexpr,
    MOST_ROWS: gl.constexpr,
) -> gl.tuple:
    """The shortest run [begin, end) of the program's rows with all rows that see its tile.

    The third value is whether each of them sees the whole tile.
    """
    row = first_row + gl.arange(0, MOST_ROWS, vector_layout(1, gl.num_warps()))
    start = gl.load(start_ptr + row, mask=row < last_row, other=0)
    end = gl.load(end_ptr + row, mask=row < last_row, other=0)
    sees = (start < end) & (start < first_key + KEYS) & (end > first_key)
    begin = gl.min(gl.where(sees, row, last_row))
    stop = gl.maximum(gl.max(gl.where(sees, row + 1, first_row)), begin)
    inside = (row >= begin) & (row < stop)
    whole = (start <= first_key) & (end >= first_key + KEYS)
    return begin, stop, gl.min((whole | (inside == 0)).to(gl.int32)) != 0


@gluon.jit
def mask_rows(out_ptr, num_keys, key, begin, end) -> None:
    """-inf at the tile's keys in rows [begin, end)."""
    nothing = gl.full(key.shape, float("-inf"), gl.float32, key.type.layout)
    for i in range(end - begin):
        row = begin + i
        gl.store(out_ptr + row.to(gl.int64) * num_keys + key, nothing, mask=key < num_keys)


@gluon.jit
def store_rows(
    out_ptr, start_ptr, end_ptr, sums, key_scale, key, row, end, num_keys, whole
) -> None:
    """Scales, masks and stores the sums [keys, ROWS] of rows row onwards, before end."""
    num_rows: gl.constexpr = sums.shape[1]
    parts = (gl.reshape(sums, [sums.shape[0]]),) if num_rows == 1 else gl.split(sums)
    for part in gl.static_range(num_rows):
        logits = gl.convert_layout(parts[part], key.type.layout, assert_trivial=True) * key_scale
        _store_row(out_ptr, start_ptr, end_ptr, logits, key, row + part, end, num_keys, whole)


@gluon.jit
def _store_row(out_ptr, start_ptr, end_ptr, logits, key, row, end, num_keys, whole):
    if not whole:
        start = gl.load(start_ptr + row, mask=row < end, other=0)
        seen = (key >= start) & (key < gl.load(end_ptr + row, mask=row < end, other=0))
        logits = gl.where(seen, logits, float("-inf"))
    row_ptr = out_ptr + row.to(gl.int64) * num_keys
    gl.store(row_ptr + key, logits, mask=(key < num_keys) & (row < end))
