"""Where the values of a tile lie: in registers, in shared memory, in tensor memory."""

from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import constexpr_function
from triton.experimental.gluon.language.nvidia.blackwell import TensorMemoryLayout

from hisparse_kernels.gpu.gluon.api import tmem_registers


@constexpr_function
def product_layout(arch, keys, columns, num_warps) -> object:
    """Of the product, [keys, columns]: that of wgmma, or one row a thread."""
    if arch >= 100:
        return tmem_registers(keys, columns, tmem_layout(keys, columns), num_warps)
    return gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[num_warps, 1], instr_shape=[16, columns, 32]
    )


@constexpr_function
def tmem_layout(keys, columns) -> TensorMemoryLayout:
    """Of one accumulator in tensor memory."""
    return TensorMemoryLayout(block=(keys, columns), col_stride=1)


@constexpr_function
def operand_layout() -> gl.NVMMASharedLayout:
    """Of rows of 128 e4m3 values in shared memory."""
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2)


@constexpr_function
def flat_layout() -> gl.SwizzledSharedLayout:
    """Of a vector in shared memory."""
    return gl.SwizzledSharedLayout(vec=1, per_phase=1, max_phase=1, order=[0])


@constexpr_function
def wide_rows_layout(num_warps) -> gl.BlockedLayout:
    """Of rows of 128 bytes on their way from memory, 16 bytes at a time."""
    return gl.BlockedLayout([1, 16], [4, 8], [num_warps, 1], [1, 0])


@constexpr_function
def narrow_rows_layout(num_warps) -> gl.BlockedLayout:
    """Of rows of 128 bytes on their way from memory, 4 bytes at a time."""
    return gl.BlockedLayout([1, 4], [1, 32], [num_warps, 1], [1, 0])


@constexpr_function
def vector_layout(width, num_warps) -> gl.BlockedLayout:
    """Of a vector on its way from memory."""
    return gl.BlockedLayout([width], [32], [num_warps], [0])


@constexpr_function
def shared_sums_layout(keys, rows, num_warps) -> gl.DistributedLinearLayout:
    """Of four partial sums a key and row, [keys, rows, 4], all four in one thread.

    A quad of lanes holds the partial sums of its keys, one of the four a lane; here it has
    exchanged them, so that a lane adds, scales and stores a quarter of the keys.
    """
    span = 16 * num_warps  # keys of one product of all warps
    free = [[8, 0, 0], *([span << bit, 0, 0] for bit in range((keys // span).bit_length() - 1))]
    rest = [[0, 1 << bit, 0] for bit in range(rows.bit_length() - 1)]
    partials = [[0, 0, 2], [0, 0, 1]]
    swapped = min(2, len(free))
    lanes = [*free[:swapped], *partials[swapped:], [1, 0, 0], [2, 0, 0], [4, 0, 0]]
    warps = [[16 << bit, 0, 0] for bit in range(num_warps.bit_length() - 1)]
    return gl.DistributedLinearLayout(
        [*partials[:swapped], *free[swapped:], *rest], lanes, warps, [], [keys, rows, 4]
    )


@constexpr_function
def key_layout(arch, keys, rows, columns, num_warps) -> gl.SliceLayout:
    """Of the sums of one row, [keys]."""
    if arch >= 100:
        return gl.SliceLayout(1, product_layout(arch, keys, columns, num_warps))
    partials = shared_sums_layout(keys, rows, num_warps)
    return gl.SliceLayout(1, gl.SliceLayout(2, partials))
