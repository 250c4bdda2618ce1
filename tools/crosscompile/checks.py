"""What must hold of every compiled kernel, and of the kernels of one case."""

import re
from collections.abc import Iterator, Sequence

import triton

from tools.crosscompile.case import Expects
from tools.crosscompile.limits import (
    KNOWN_TF32,
    MAX_GRID,
    MAX_SHARED_BYTES,
    MAX_TMEM_COLUMNS,
    MIN_CODE_SHARE,
    MIN_WIDE_SHARE,
    permitted_spill_bytes,
)
from tools.crosscompile.ptx import WIDE_BYTES
from tools.crosscompile.report import KernelReport

MATRIX_ROWS = 64  # rows of a product that fill the matrix unit
MATRIX_UNITS = {90: "wgmma.mma_async", 100: "tcgen05.mma", 103: "tcgen05.mma"}

_LOW_PRECISION = ("bf16", "f16", "f8E4M3FN", "f8E5M2")
_PRODUCT = re.compile(r"\btt\.dot\b.*? : tensor<([\w]+?)(?:, #.*?)?> \* .*?-> tensor<(\w+)")


def low_precision_products(ir: str) -> list[str]:
    """Shapes of the `tt.dot`s in Triton's IR that have 64 or more rows and narrow operands."""
    found = []
    for left, result in _PRODUCT.findall(ir):
        *_, operand = left.rpartition("x")
        rows = int(result.split("x")[-3])
        if operand in _LOW_PRECISION and rows >= MATRIX_ROWS:
            found.append(left)
    return found


def kernel_failures(kernel: KernelReport) -> Iterator[str]:
    """One line for each limit of the hardware, or of ours, that the kernel breaks."""
    if kernel.traps:
        yield "its code is a trap: some resource overflowed in the compiler"
    if kernel.code_bytes < MIN_CODE_SHARE * kernel.ptx_instructions * 16:
        yield (
            f"{kernel.code_bytes} bytes of machine code for {kernel.ptx_instructions} PTX "
            "instructions: most of it was dropped"
        )
    if kernel.tmem_columns > MAX_TMEM_COLUMNS:
        yield f"{kernel.tmem_columns} TMEM columns, at most {MAX_TMEM_COLUMNS} exist"
    if kernel.shared_bytes > MAX_SHARED_BYTES:
        yield f"{kernel.shared_bytes} bytes of shared memory, at most {MAX_SHARED_BYTES} exist"
    spilled = kernel.spill_store_bytes + kernel.spill_load_bytes
    permitted = permitted_spill_bytes(kernel.kernel, kernel.arch)
    if spilled > permitted:
        yield f"spills {spilled} bytes (stores and loads), {permitted} permitted"
    yield from _launch_failures(kernel)
    yield from _matrix_failures(kernel)


def case_failures(expects: Expects, kernels: Sequence[KernelReport]) -> Iterator[str]:
    """One line for each thing that the case expects and none of its kernels has."""
    if not kernels:
        yield "launched no kernel"
    if expects.matrix_unit and not any(kernel.products for kernel in kernels):
        yield f"no kernel has a low-precision product of {MATRIX_ROWS} rows"
    if expects.accumulator_columns:
        for kernel in kernels:
            yield from _pipeline_failures(kernel, expects.accumulator_columns)
    for kernel in kernels:
        yield from _async_failures(kernel, expects)
    for argument in expects.wide:
        yield from _width_failures(argument, kernels, 1.0)
    for argument in expects.mostly_wide:
        yield from _width_failures(argument, kernels, MIN_WIDE_SHARE)


def _pipeline_failures(kernel: KernelReport, columns: int) -> Iterator[str]:
    unit = MATRIX_UNITS[kernel.arch]
    if unit not in kernel.matrix_counts:
        yield f"{kernel.kernel} has no product on {unit}"
    if unit == "tcgen05.mma" and kernel.tmem_columns < columns:
        yield f"{kernel.kernel} has {kernel.tmem_columns} TMEM columns of products, needs {columns}"


def _async_failures(kernel: KernelReport, expects: Expects) -> Iterator[str]:
    for kind in expects.instructions:
        if not kernel.async_counts.get(kind):
            yield f"{kernel.kernel} has no {kind}"
    for argument in expects.unread:
        if argument not in kernel.widths:
            yield f"{kernel.kernel} has no argument {argument}"
        elif any(width >= WIDE_BYTES for width in kernel.widths[argument].loads):
            yield f"{kernel.kernel} loads {argument}, which TMA brings"


def _width_failures(
    argument: str, kernels: Sequence[KernelReport], least_share: float
) -> Iterator[str]:
    users = [kernel for kernel in kernels if argument in kernel.widths]
    if not users:
        yield f"no kernel reads or writes an argument {argument}"
    for kernel in users:
        used = kernel.widths[argument]
        if not used.loads and not used.stores:
            yield f"{kernel.kernel} moves {argument} in no way that could be followed"
        elif used.wide_share < least_share:
            narrow = sorted(width for width in used.loads | used.stores if width < WIDE_BYTES)
            listed = ", ".join(map(str, narrow))
            yield f"{kernel.kernel} moves {argument} {listed} bytes at a time, not 16"


def _launch_failures(kernel: KernelReport) -> Iterator[str]:
    for axis, (size, most) in enumerate(zip(kernel.grid, MAX_GRID, strict=False)):
        if size > most:
            yield f"grid[{axis}] is {size}, at most {most} allowed"
    if not kernel.says_fp_fusion:
        yield "its launch leaves enable_fp_fusion to a default that Triton 3.10 changes"


def _matrix_failures(kernel: KernelReport) -> Iterator[str]:
    unit = MATRIX_UNITS[kernel.arch]
    if kernel.products and unit not in kernel.matrix_counts:
        yield f"its product of {kernel.products[0]} is not on {unit}"
    elif kernel.left_products:
        yield f"its product of {kernel.left_products[0]} is not on {unit}, others are"
    if kernel.rounds_to_tf32 and (kernel.arch, triton.__version__) not in KNOWN_TF32:
        yield "its fp32 product is rounded to tf32"
    if kernel.serial_wgmma:
        yield "wgmma is serialised: too few registers to overlap products"
