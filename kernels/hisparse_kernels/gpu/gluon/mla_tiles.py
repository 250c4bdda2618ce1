"""Tiles of stored KV rows in shared memory as bf16, brought by warps that do nothing else."""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from hisparse_kernels.gpu.gluon.api import async_load, barrier
from hisparse_kernels.gpu.gluon.mla_rows import load_ids, row_at
from hisparse_kernels.layouts import SCALE_DIM

HALF = gl.constexpr(256)  # of the latent dims
_LATENT = gl.constexpr(512)
_GROUP = gl.constexpr(SCALE_DIM)
_SCALES_BYTES = gl.constexpr(512 // SCALE_DIM * 4)


@gluon.jit
def tile_places(KEYS: gl.constexpr, ROPE: gl.constexpr) -> gl.tuple:
    """Room for two tiles, [2, keys, dims]: halves of the latent dims, and the rope."""
    return _places(KEYS, HALF), _places(KEYS, HALF), _places(KEYS, ROPE if ROPE > 0 else 64)


@gluon.jit
def _places(KEYS: gl.constexpr, DIMS: gl.constexpr) -> gl.shared_memory_descriptor:
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    return gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, DIMS], layout)


@gluon.jit
def tile_barriers(CODED: gl.constexpr, PRODUCERS: gl.constexpr) -> gl.tuple:
    """For each place: that its tile has come, and that it may be written again."""
    full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    copies: gl.constexpr = 32 * PRODUCERS  # each thread's own arrive when they are done
    for place in gl.static_range(2):
        mbarrier.init(full.index(place), count=copies + 1 if CODED else copies)
        mbarrier.init(empty.index(place), count=1)
    return full, empty


@gluon.jit
def bring_tiles(
    places,
    barriers,
    rows,
    keys,
    CODED: gl.constexpr,
    ROPE: gl.constexpr,
    KEYS: gl.constexpr,
    AHEAD: gl.constexpr,
) -> None:
    """Brings rows, (their pointer, stride), of `keys`, (ids, first, end), tile by tile.

    Copied as they are, or dequantised; zeros of no key. Codes of `AHEAD` scale groups are loaded
    before their place is free.
    """
    full, empty = barriers
    kv_ptr, row_stride = rows
    ids_ptr, first, end = keys
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    key = gl.arange(0, KEYS, gl.SliceLayout(1, layout))
    row_id = load_ids(ids_ptr, first + key, end)
    for start in tl.range(first, end, KEYS, disable_licm=True):
        tile = (start - first) // KEYS
        place = tile & 1
        if CODED:
            codes = _load_codes(kv_ptr, ids_ptr, start, end, row_stride, 0, KEYS)
        if AHEAD == 4:
            others = _load_codes(kv_ptr, ids_ptr, start, end, row_stride, 2, KEYS)
        mbarrier.wait(empty.index(place), ((tile >> 1) & 1) ^ 1)
        _begin_tile(places, place, row_at(kv_ptr, row_id, row_stride), row_id >= 0, CODED, ROPE)
        async_copy.mbarrier_arrive(full.index(place), increment_count=False)
        row_id = load_ids(ids_ptr, start + KEYS + key, end)
        if CODED:
            if AHEAD == 2:
                others = _load_codes(kv_ptr, ids_ptr, start, end, row_stride, 2, KEYS)
            store_values(places[0].index(place), codes)
            store_values(places[1].index(place), others)
            hopper.fence_async_shared()
            barrier()
            mbarrier.arrive(full.index(place))
    async_copy.wait_group(0)


@gluon.jit
def _begin_tile(places, place, at, real, CODED: gl.constexpr, ROPE: gl.constexpr) -> None:
    """Begins to copy what is stored in bf16 of a tile's rows."""
    if not CODED:
        _begin_values(places[0].index(place), at, real)
        _begin_values(places[1].index(place), at + 2 * HALF, real)
    if ROPE > 0:
        rope_at = at + (_LATENT + _SCALES_BYTES if CODED else 2 * _LATENT)
        _begin_values(places[2].index(place), rope_at, real)


@gluon.jit
def _begin_values(target, at, real) -> None:
    """Begins to copy values of a tile's rows; 0 of no key."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    dim = gl.arange(0, target.shape[1], gl.SliceLayout(0, layout))
    value_at = gl.expand_dims(at.to(gl.pointer_type(gl.bfloat16)), 1) + gl.expand_dims(dim, 0)
    mask = gl.expand_dims(real, 1) & (gl.expand_dims(dim, 0) >= 0)
    async_load(target, value_at, mask=mask)


@gluon.jit
def _load_codes(
    kv_ptr, ids_ptr, start, end, row_stride, GROUP: gl.constexpr, KEYS: gl.constexpr
) -> gl.tuple:
    """Codes [keys, 128] and scales [keys] of two scale groups; 0 of no key."""
    layout: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [gl.num_warps(), 1], [1, 0])
    key = gl.arange(0, KEYS, gl.SliceLayout(1, layout))
    row_id = load_ids(ids_ptr, start + key, end)
    at, real = row_at(kv_ptr, row_id, row_stride), row_id >= 0
    return _load_group(at, real, GROUP, layout), _load_group(at, real, GROUP + 1, layout)


@gluon.jit
def _load_group(at, real, GROUP: gl.constexpr, LAYOUT: gl.constexpr) -> gl.tuple:
    dim = gl.arange(0, _GROUP, gl.SliceLayout(0, LAYOUT))
    code_at = at.to(gl.pointer_type(gl.float8e4nv)) + GROUP * _GROUP
    mask = gl.expand_dims(real, 1) & (gl.expand_dims(dim, 0) >= 0)
    codes = gl.load(gl.expand_dims(code_at, 1) + gl.expand_dims(dim, 0), mask=mask, other=0.0)
    return codes, load_scales(at, real, GROUP)


@gluon.jit
def load_scales(at, real, GROUP: gl.constexpr) -> gl.tensor:
    """Scales [keys] of a scale group; 0 of no key."""
    scale_at = (at + (_LATENT + 4 * GROUP)).to(gl.pointer_type(gl.float32))
    return gl.load(scale_at, mask=real, other=0.0)


@gluon.jit
def store_values(target, groups) -> None:
    """Stores the values of two scale groups, as rows in bf16 would hold them."""
    for group in gl.static_range(2):
        codes, scales = groups[group]
        values = codes.to(gl.float32) * gl.expand_dims(scales, 1)
        target.slice(group * _GROUP, _GROUP, dim=1).store(values.to(gl.bfloat16))
