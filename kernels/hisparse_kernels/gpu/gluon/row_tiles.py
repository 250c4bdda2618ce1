"""Which tiles of a row's own blocks hold something to score, and where each of them lies."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from hisparse_kernels.gpu.gluon.layouts import vector_layout

_SCAN_ENTRIES = gl.constexpr(128)


@gluon.jit
def tiles_to_score(
    slots_ptr,
    ids_ptr,
    row_pos,
    num_entries,
    first_tile,
    last_tile,
    WRITE_ALL: gl.constexpr,
    TILES_PER_BLOCK: gl.constexpr,
    KEYS: gl.constexpr,
) -> gl.tuple:
    """The shortest run of tiles with all blocks to score, and whether others are to be written.

    A stream through the window holds a run of the row's blocks at a time: the others cost nothing.
    """
    first_entry = first_tile // TILES_PER_BLOCK
    last_entry = gl.minimum(gl.cdiv(last_tile, TILES_PER_BLOCK), num_entries)
    lane = gl.arange(0, _SCAN_ENTRIES, vector_layout(1, gl.num_warps()))
    begins, ends, others = lane * 0 + last_entry, lane * 0 + first_entry, lane * 0
    for start in range(first_entry, last_entry, _SCAN_ENTRIES):
        entry = start + lane
        is_entry = entry < last_entry
        block = gl.load(ids_ptr + entry, mask=is_entry, other=-1)
        held = gl.load(slots_ptr + entry, mask=is_entry & (block >= 0), other=-1) >= 0
        scored = held & (block * (TILES_PER_BLOCK * KEYS) <= row_pos)
        begins = gl.where(scored, gl.minimum(begins, entry), begins)
        ends = gl.where(scored, entry + 1, ends)
        written = is_entry if WRITE_ALL else held
        others = gl.where(written & (scored == 0), 1, others)
    begin = gl.maximum(gl.min(begins) * TILES_PER_BLOCK, first_tile)
    end = gl.minimum(gl.max(ends) * TILES_PER_BLOCK, last_tile)
    return begin, gl.maximum(end, begin), gl.max(others)


@gluon.jit
def tile_at(slots_ptr, ids_ptr, tile, end, TILES_PER_BLOCK: gl.constexpr) -> gl.tuple:
    """Number of a tile's keys, tile by tile, in the window and in the sequence.

    The first is -1 where nothing is held, both are from the end on.
    """
    entry, within = tile // TILES_PER_BLOCK, tile % TILES_PER_BLOCK
    block = gl.load(ids_ptr + entry, mask=tile < end, other=-1)
    slot = gl.load(slots_ptr + entry, mask=tile < end, other=-1)
    held = (block >= 0) & (slot >= 0)
    place = gl.where(held, slot.to(gl.int64) * TILES_PER_BLOCK + within, -1)
    return place, block * TILES_PER_BLOCK + within
