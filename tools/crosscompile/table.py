"""Print what was found: one line for each kernel, then one for each failure."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tools.crosscompile.report import CaseReport, KernelReport

_NUMBERS = ("warps", "regs", "spill B", "smem KB", "TMEM", "code KB")
_FILE_WIDTH = 200  # where no terminal says how wide a line may be


def print_table(reports: Sequence[CaseReport], failures: Sequence[str]) -> None:
    """Writes to stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_FILE_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("case", "kernel", "sm"):
        table.add_column(name, no_wrap=True)
    for name in _NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("matrix", "loads", "stores", ""):
        table.add_column(name, no_wrap=True)
    for report in reports:
        _add_rows(table, report)
    console.print(table)
    for line in failures:
        console.print(f"FAILED {line}", style="red", markup=False, soft_wrap=True)
    kernels = sum(len(report.kernels) for report in reports)
    seconds = sum(report.seconds for report in reports)
    console.print(f"{kernels} kernels, {len(failures)} failures, {seconds:.0f} s of compiling")


def _add_rows(table: Table, report: CaseReport) -> None:
    for kernel in report.kernels:
        table.add_row(report.case, kernel.kernel, str(kernel.arch), *_cells(kernel, report))
    if not report.kernels:
        table.add_row(report.case, "-", str(report.arch), *[""] * (len(_NUMBERS) + 3), "FAILED")


def _cells(kernel: KernelReport, report: CaseReport) -> list[str]:
    failed = bool(kernel.failures or report.failures)
    return [
        str(kernel.num_warps),
        str(kernel.registers),
        str(kernel.spill_store_bytes + kernel.spill_load_bytes),
        f"{kernel.shared_bytes / 1024:.1f}",
        str(kernel.tmem_columns),
        f"{kernel.code_bytes / 1024:.1f}",
        ", ".join(f"{unit.split('.')[0]} {n}" for unit, n in kernel.matrix_counts.items()) or "-",
        _widths(kernel, "loads"),
        _widths(kernel, "stores"),
        "FAILED" if failed else "ok",
    ]


def _widths(kernel: KernelReport, kind: str) -> str:
    """Bytes at a time over all arguments."""
    found = {width for widths in kernel.widths.values() for width in getattr(widths, kind)}
    return " ".join(map(str, sorted(found))) or "-"
