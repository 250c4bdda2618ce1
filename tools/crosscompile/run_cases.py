"""Compile many cases, one process for each processor."""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tools.crosscompile.case import case_of
from tools.crosscompile.compile_case import compile_named
from tools.crosscompile.report import CaseReport


def run_cases(
    cases: Sequence[tuple[str, str]], arches: Sequence[int], jobs: int | None = None
) -> list[CaseReport]:
    """Reports in the order of the cases, each with one of every arch that it is for.

    Args:
        cases: module and name of each.
        arches: 90, 100, 103.
        jobs: processes; None = as many as there are processors.
    """
    tasks = [
        (module, name, arch)
        for module, name in cases
        for arch in arches
        if case_of(module, name).only in (None, arch)
    ]
    spawn = multiprocessing.get_context("spawn")  # Triton and torch have threads: no fork
    workers = min(jobs or os.cpu_count() or 1, max(len(tasks), 1))
    with (
        tempfile.TemporaryDirectory(prefix="crosscompile-") as folder,
        ProcessPoolExecutor(workers, spawn, _set_up, (folder,)) as pool,
    ):
        futures = [pool.submit(compile_named, *task) for task in tasks]
        _show_progress(futures)
        return [future.result() for future in futures]


def _set_up(cache_folder: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = cache_folder  # dropped at the end: each run compiles anew


def _show_progress(futures: Sequence[Future[CaseReport]]) -> None:
    """A bar on a terminal's stderr, nothing elsewhere."""
    columns = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("", total=len(futures))
        for _ in as_completed(futures):
            progress.advance(bar)
