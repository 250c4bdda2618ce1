"""Products of a tile of keys with a tile of heads, two in flight: wgmma, or tcgen05."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import blackwell, hopper

from hisparse_kernels.gpu.gluon.layouts import product_layout, tmem_layout


@gluon.jit
def accumulators(ARCH: gl.constexpr, KEYS: gl.constexpr, COLUMNS: gl.constexpr) -> gl.tuple:
    """Two accumulators and what tells that they are done: registers; or tensor memory."""
    if ARCH >= 100:
        acc = blackwell.allocate_tensor_memory(
            gl.float32, [2, KEYS, COLUMNS], tmem_layout(KEYS, COLUMNS)
        )
        done = gl.allocate_shared_memory(gl.int64, [2, 1], hopper.mbarrier.MBarrierLayout())
        for stage in gl.static_range(2):
            hopper.mbarrier.init(done.index(stage), count=1)
        hopper.fence_async_shared()
        first, second = acc.index(0), acc.index(1)
    else:
        layout: gl.constexpr = product_layout(ARCH, KEYS, COLUMNS, gl.num_warps())
        first = gl.full([KEYS, COLUMNS], 0.0, gl.float32, layout)
        second = first
        done = 0
    return first, second, done


@gluon.jit
def start_product(keys, heads, acc, done, STAGE: gl.constexpr, ARCH: gl.constexpr) -> gl.tensor:
    """Begins keys @ heads.T into the accumulator; returns it."""
    if ARCH >= 100:
        blackwell.tcgen05_mma(
            keys, heads.permute((1, 0)), acc, use_acc=False, mbarriers=[done.index(STAGE)]
        )
        started = acc
    else:
        started = hopper.warpgroup_mma(
            keys, heads.permute((1, 0)), acc, use_acc=False, is_async=True
        )
    return started


@gluon.jit
def finish_product(
    acc,
    done,
    phase,
    STAGE: gl.constexpr,
    ARCH: gl.constexpr,
    KEYS: gl.constexpr,
    COLUMNS: gl.constexpr,
    PENDING: gl.constexpr,
) -> gl.tuple:
    """Its values once a product is done, and its accumulator; PENDING later ones may run on."""
    if ARCH >= 100:
        hopper.mbarrier.wait(done.index(STAGE), phase)
        dots = acc.load(product_layout(ARCH, KEYS, COLUMNS, gl.num_warps()))
        free = acc
    else:
        dots = hopper.warpgroup_mma_wait(PENDING, deps=[acc])
        free = dots
    return dots, free
