"""What was found about one compiled kernel, and about one case."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tools.crosscompile.ptx import Widths


@dataclass
class KernelReport:
    """One kernel of one case for one arch.

    Attributes:
        kernel, arch, grid, num_warps, num_stages: what was launched.
        constants: its constexpr arguments.
        says_fp_fusion: the launch says whether multiply and add may fuse.
        registers: of a thread.
        spill_store_bytes, spill_load_bytes: of a thread.
        serial_wgmma: ptxas could not overlap the products.
        shared_bytes, tmem_columns: of a block.
        code_bytes, ptx_instructions, traps: size of the code, and whether it holds a trap.
        matrix_counts: instructions of each matrix unit.
        async_counts: instructions of each kind that pipelines of sm_100 are made of.
        rounds_to_tf32: some product of fp32 values is one of tf32.
        products: low-precision products of 64 or more rows in the source.
        left_products: those that the compiler left off the matrix unit.
        widths: instructions by the bytes that they move, by pointer argument.
        failures: one line for each limit that is broken.
    """

    kernel: str
    arch: int
    grid: tuple[int, ...]
    num_warps: int
    num_stages: int
    constants: Mapping[str, str]
    says_fp_fusion: bool
    registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    serial_wgmma: bool
    shared_bytes: int
    tmem_columns: int
    code_bytes: int
    ptx_instructions: int
    traps: bool
    matrix_counts: Mapping[str, int]
    async_counts: Mapping[str, int]
    rounds_to_tf32: bool
    products: list[str]
    left_products: list[str]
    widths: Mapping[str, Widths]
    failures: list[str] = field(default_factory=list)


@dataclass
class CaseReport:
    """One case for one arch; `failures` are those of no single kernel."""

    case: str
    arch: int
    kernels: list[KernelReport]
    failures: list[str]
    seconds: float

    def failure_lines(self) -> list[str]:
        """All failures, each with where it is."""
        where = f"{self.case}, sm_{self.arch}"
        lines = [f"{where}: {failure}" for failure in self.failures]
        for kernel in self.kernels:
            lines += [f"{where}: {kernel.kernel}: {failure}" for failure in kernel.failures]
        return list(dict.fromkeys(lines))  # specialisations of a kernel often fail alike

    def as_json(self) -> dict[str, Any]:
        """Plain values only."""
        return asdict(self)
