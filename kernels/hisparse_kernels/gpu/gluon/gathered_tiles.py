"""Tiles of stored KV rows in shared memory as bf16, brought by gather4: the TMA of sm_100.

A place holds a tile as two halves of the latent dims and the rope. Rows in bf16 come as they are.
Codes of fp8 rows come into the second half of their own place, which they fill; other warps
dequantise them there. Of no key, id -1, TMA writes zeros: the row lies outside of the pool.
"""

import torch
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.blackwell import tma
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from hisparse_kernels.gpu.gluon.api import barrier, reinterpreted
from hisparse_kernels.gpu.gluon.layouts import operand_layout
from hisparse_kernels.gpu.gluon.mla_rows import load_ids, row_at
from hisparse_kernels.gpu.gluon.mla_tiles import HALF, load_scales, store_values
from hisparse_kernels.layouts import SCALE_DIM, KvLayout

_LATENT = gl.constexpr(2 * HALF.value)
_GROUP = gl.constexpr(SCALE_DIM)


def row_descriptors(kv_rows: torch.Tensor, layout: KvLayout) -> dict[str, TensorDescriptor | None]:
    """What TMA has to know of the rows: `latent_rows` and `rope_rows`, None where there is no rope.

    Args:
        kv_rows: [N >= 1, row_bytes] uint8, aligned to 16 B.
        layout: how a row is stored: fp8 or bf16.
    """
    if len(kv_rows) == 1:  # the stride of a lone row means nothing
        kv_rows = kv_rows.as_strided(kv_rows.shape, (layout.row_bytes, 1))
    coded = layout.name != "bf16"
    latent_bytes = layout.latent_dim * (1 if coded else 2)
    rope_bytes = layout.rope_dim * 2
    rope_at = layout.row_bytes - rope_bytes
    latent_dtype = torch.float8_e4m3fn if coded else torch.bfloat16
    columns = layout.latent_dim if coded else HALF.value
    return {
        "latent_rows": _descriptor(kv_rows, 0, latent_bytes, latent_dtype, columns),
        "rope_rows": _descriptor(kv_rows, rope_at, rope_bytes, torch.bfloat16, layout.rope_dim)
        if layout.rope_dim
        else None,
    }


def _descriptor(
    kv_rows: torch.Tensor, first: int, num_bytes: int, dtype: torch.dtype, columns: int
) -> TensorDescriptor:
    """Of some bytes of every row as values, so many of them at a time."""
    values = kv_rows[:, first : first + num_bytes].view(dtype)
    bits = 8 * values.element_size()
    shared = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=bits, rank=2)
    return TensorDescriptor(values, list(values.shape), list(values.stride()), [1, columns], shared)


@gluon.jit
def gathered_places(KEYS: gl.constexpr, ROPE: gl.constexpr) -> gl.tuple:
    """Room for two tiles: latent halves [2 * place + half, keys, dims], and rope [place, ...]."""
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    latent = gl.allocate_shared_memory(gl.bfloat16, [4, KEYS, HALF], layout)
    rope = latent
    if ROPE > 0:
        rope = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, ROPE], layout)
    return latent, rope


@gluon.jit
def gathered_barriers(CODED: gl.constexpr) -> gl.tuple:
    """For each place: that TMA has written it, that its tile is there, that it may be written."""
    written, empty = two_barriers(), two_barriers()
    full = two_barriers() if CODED else written
    return written, full, empty


@gluon.jit
def two_barriers() -> gl.shared_memory_descriptor:
    """Each waits for one arrival."""
    pair = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(2):
        mbarrier.init(pair.index(place), count=1)
    return pair


@gluon.jit
def gather_tiles(
    places,
    barriers,
    descriptors,
    keys,
    CODED: gl.constexpr,
    ROPE: gl.constexpr,
    KEYS: gl.constexpr,
) -> None:
    """Has TMA bring what is stored of `keys`, (ids, first, end), tile by tile."""
    written, _, empty = barriers
    latent, rope = places
    latent_rows, rope_rows = descriptors
    ids_ptr, first, end = keys
    row_bytes: gl.constexpr = (_LATENT if CODED else 2 * _LATENT) + 2 * ROPE
    # of four ids a thread makes one copy
    fours: gl.constexpr = gl.BlockedLayout([1, 4], [32, 1], [1, gl.num_warps()], [1, 0])
    key = gl.arange(0, KEYS, gl.SliceLayout(0, fours))
    for start in tl.range(first, end, KEYS):
        tile = (start - first) // KEYS
        place = tile & 1
        row_id = load_ids(ids_ptr, start + key, end)
        mbarrier.wait(empty.index(place), ((tile >> 1) & 1) ^ 1)
        mbarrier.expect(written.index(place), KEYS * row_bytes)
        if CODED:
            codes = _codes_of(latent, place, KEYS)
            tma.async_gather(latent_rows, row_id, 0, written.index(place), codes)
        else:
            for half in gl.static_range(2):
                target = latent.index(2 * place + half)
                tma.async_gather(latent_rows, row_id, half * HALF, written.index(place), target)
        if ROPE > 0:
            tma.async_gather(rope_rows, row_id, 0, written.index(place), rope.index(place))


@gluon.jit
def dequantise_tiles(places, barriers, rows, keys, KEYS: gl.constexpr) -> None:
    """Turns the codes of each tile into values, as rows in bf16 would hold them.

    The scales come from `rows`, (pointer, stride).
    """
    written, full, _ = barriers
    latent = places[0]
    kv_ptr, row_stride = rows
    ids_ptr, first, end = keys
    layout: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [gl.num_warps(), 1], [1, 0])
    key = gl.arange(0, KEYS, gl.SliceLayout(1, layout))
    for start in tl.range(first, end, KEYS):
        tile = (start - first) // KEYS
        place = tile & 1
        row_id = load_ids(ids_ptr, start + key, end)
        at, real = row_at(kv_ptr, row_id, row_stride), row_id >= 0
        s0, s1 = load_scales(at, real, 0), load_scales(at, real, 1)
        s2, s3 = load_scales(at, real, 2), load_scales(at, real, 3)
        mbarrier.wait(written.index(place), (tile >> 1) & 1)
        codes = _codes_of(latent, place, KEYS)
        first_groups = (_load_group(codes, 0, layout), s0), (_load_group(codes, 1, layout), s1)
        store_values(latent.index(2 * place), first_groups)
        other_groups = (_load_group(codes, 2, layout), s2), (_load_group(codes, 3, layout), s3)
        barrier()  # all codes are read: values of the second half lie where they were
        store_values(latent.index(2 * place + 1), other_groups)
        hopper.fence_async_shared()
        barrier()
        mbarrier.arrive(full.index(place))


@gluon.jit
def _codes_of(latent, place, KEYS: gl.constexpr) -> gl.shared_memory_descriptor:
    """Room for a tile's codes [keys, dims]: the second half of its place."""
    layout: gl.constexpr = operand_layout()
    return reinterpreted(latent.index(2 * place + 1), gl.float8e4nv, [KEYS, _LATENT], layout)


@gluon.jit
def _load_group(codes, GROUP: gl.constexpr, LAYOUT: gl.constexpr) -> gl.tensor:
    return codes.slice(GROUP * _GROUP, _GROUP, dim=1).load(LAYOUT)
