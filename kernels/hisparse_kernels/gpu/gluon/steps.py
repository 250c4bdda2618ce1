"""The steps of a pipeline: four stages of copies, and one product ahead of the one in use.

Each turn of a loop has four steps. In step i the copies of step i + 3 begin, the product of step
i + 1 runs, and the values of the product of step i are used.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from hisparse_kernels.gpu.gluon.api import barrier
from hisparse_kernels.gpu.gluon.products import finish_product, start_product


@gluon.jit
def four_of(DTYPE: gl.constexpr, SHAPE: gl.constexpr, LAYOUT: gl.constexpr) -> gl.tuple:
    """Four allocations, not one of four: the compiler then sees that copies and products differ."""
    return (
        gl.allocate_shared_memory(DTYPE, SHAPE, LAYOUT),
        gl.allocate_shared_memory(DTYPE, SHAPE, LAYOUT),
        gl.allocate_shared_memory(DTYPE, SHAPE, LAYOUT),
        gl.allocate_shared_memory(DTYPE, SHAPE, LAYOUT),
    )


@gluon.jit
def await_copies(PENDING: gl.constexpr) -> None:
    """All copies but the PENDING last have come, and every warp is here."""
    async_copy.wait_group(PENDING)
    barrier()  # right behind the wait: elsewhere the compiler adds a second one
    hopper.fence_async_shared()


@gluon.jit
def begin_step(
    keys,
    heads,
    next_keys,
    next_heads,
    acc,
    idle,
    done,
    STAGE: gl.constexpr,
    ACROSS: gl.constexpr,
    ARCH: gl.constexpr,
) -> gl.tuple:
    """Starts the next step's product, and of a turn's first step its own too.

    With ACROSS a product runs on while the loop turns, and one was started before the loop.
    Thereafter no product reads the stage of the step before.
    """
    runs_on: gl.constexpr = ACROSS or STAGE < 3
    if runs_on:
        await_copies(1)
    else:
        barrier()
    if STAGE == 0 and not ACROSS:
        acc = start_product(keys, heads, acc, done, 0, ARCH)
    if runs_on:
        idle = start_product(next_keys, next_heads, idle, done, (STAGE + 1) % 2, ARCH)
    return acc, idle


@gluon.jit
def finish_step(
    acc,
    idle,
    done,
    STAGE: gl.constexpr,
    ACROSS: gl.constexpr,
    ARCH: gl.constexpr,
    KEYS: gl.constexpr,
    COLUMNS: gl.constexpr,
) -> gl.tuple:
    """The values of the step's product, then the next step's accumulator and the free one."""
    runs_on: gl.constexpr = ACROSS or STAGE < 3
    pending: gl.constexpr = 1 if runs_on else 0
    dots, free = finish_product(acc, done, STAGE // 2, STAGE % 2, ARCH, KEYS, COLUMNS, pending)
    if runs_on:
        acc = idle
        idle = free
    else:
        acc = free
    return dots, acc, idle
