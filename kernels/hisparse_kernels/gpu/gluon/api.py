"""Gluon's names where Triton 3.6 and 3.9 differ."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import constexpr_function
from triton.experimental.gluon.language.nvidia import blackwell
from triton.experimental.gluon.language.nvidia.ampere import async_copy

barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
async_load = (
    async_copy.async_load
    if hasattr(async_copy, "async_load")
    else async_copy.async_copy_global_to_shared
)


_CALLED_REINTERPRET = hasattr(gl.shared_memory_descriptor, "reinterpret")


@constexpr_function
def tmem_registers(rows, columns, layout, num_warps, dtype=gl.float32) -> object:
    """Register layout of a load from tensor memory: one row a thread."""
    shape = [rows, columns]
    if hasattr(blackwell, "get_tmem_reg_layout"):
        return blackwell.get_tmem_reg_layout(dtype, shape, layout, num_warps)
    kind = blackwell.tensor_memory_descriptor_type(dtype, shape, layout, shape)
    return kind.get_reg_layout(num_warps=num_warps)


if _CALLED_REINTERPRET:

    @gluon.jit
    def reinterpreted(
        memory, DTYPE: gl.constexpr, SHAPE: gl.constexpr, LAYOUT: gl.constexpr
    ) -> object:
        """The same shared or tensor memory as values of another type."""
        return memory.reinterpret(DTYPE, SHAPE, LAYOUT)

else:

    @gluon.jit
    def reinterpreted(
        memory, DTYPE: gl.constexpr, SHAPE: gl.constexpr, LAYOUT: gl.constexpr
    ) -> object:
        """The same shared or tensor memory as values of another type."""
        return memory._reinterpret(DTYPE, SHAPE, LAYOUT)
