"""Run one case for one arch: its launcher on CPU tensors, every kernel compiled and checked."""

import time

from triton.compiler import ASTSource

from tools.crosscompile.case import Case, case_of
from tools.crosscompile.checks import case_failures, kernel_failures, low_precision_products
from tools.crosscompile.machine_code import code_bytes, usage
from tools.crosscompile.ptx import Ptx
from tools.crosscompile.report import CaseReport, KernelReport
from tools.crosscompile.stub_driver import Launch, compiling


def compile_named(module: str, name: str, arch: int) -> CaseReport:
    """The report of a case by its module and name: what another process can be told."""
    return compile_case(case_of(module, name), arch)


def compile_case(case: Case, arch: int) -> CaseReport:
    """Compiles all that the case launches; an exception is a failure like others."""
    start = time.perf_counter()
    failures = []
    with compiling(arch) as launches:
        try:
            case.call()
        except Exception as error:  # the compiler raises whatever it likes
            failures.append(_one_line(error))
    kernels = _reports(launches, arch)
    if not failures:
        failures += case_failures(case.expects, kernels)
    return CaseReport(case.name, arch, kernels, failures, time.perf_counter() - start)


def _reports(launches: list[Launch], arch: int) -> list[KernelReport]:
    """One report for each kernel, constants and specialisation; of its grids the largest."""
    found: dict[str, KernelReport] = {}
    for launch in sorted(launches, key=lambda launch: max(launch.grid)):
        found[launch.compiled.hash] = _report(launch, arch)
    for report in found.values():
        report.failures += kernel_failures(report)
    return list(found.values())


def _report(launch: Launch, arch: int) -> KernelReport:
    asm, metadata = launch.compiled.asm, launch.compiled.metadata
    ptx, used = Ptx.parse(asm["ptx"]), usage(launch.ptxas_log)
    return KernelReport(
        kernel=launch.kernel,
        arch=arch,
        grid=launch.grid,
        num_warps=metadata.num_warps,
        num_stages=metadata.num_stages,
        constants=_constants(launch.compiled.src),
        says_fp_fusion="enable_fp_fusion" in launch.options,
        registers=used.registers,
        spill_store_bytes=used.spill_store_bytes,
        spill_load_bytes=used.spill_load_bytes,
        serial_wgmma=used.serial_wgmma,
        shared_bytes=metadata.shared,
        tmem_columns=getattr(metadata, "tmem_size", None) or 0,
        code_bytes=code_bytes(asm["cubin"]),
        ptx_instructions=len(ptx.instructions),
        traps=ptx.traps,
        matrix_counts=ptx.matrix_counts(),
        async_counts=ptx.async_counts(),
        rounds_to_tf32=ptx.rounds_to_tf32,
        products=low_precision_products(asm.get("ttir", "")),
        left_products=low_precision_products(asm["ttgir"]),
        widths=ptx.widths(_pointers(launch.compiled.src)),
    )


def _constants(source: ASTSource) -> dict[str, str]:
    names = list(source.signature)
    return {names[path[0]]: str(value) for path, value in source.constants.items()}


def _pointers(source: ASTSource) -> dict[int, str]:
    """Pointer parameters by their place in the PTX, where constants have none."""
    kept = [(name, kind) for name, kind in source.signature.items() if kind != "constexpr"]
    return {place: name for place, (name, kind) in enumerate(kept) if kind.startswith("*")}


def _one_line(error: BaseException) -> str:
    """The first cause and the end of its text: above that, the compiler quotes the source."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' / '.join(lines[-4:])[-400:]}"
