"""Programs of the Rust core that print lines of JSON: its benchmarks and its long tests."""

import json
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.timing import Stopwatch

ROOT = Path(__file__).resolve().parent.parent
_CORE = ("--quiet", "--package", "hisparse-core")

Line: TypeAlias = dict[str, Any]  # one line's fields


def bench_lines(name: str, *arguments: str) -> Iterator[Line]:
    """Lines of `cargo bench` of one benchmark, as it prints them.

    Raises:
        ValueError: cargo is not installed, or the program failed; says what was run.
    """
    return _lines(["cargo", "bench", *_CORE, "--bench", name, "--", *arguments])


def test_lines(name: str, test: str) -> Iterator[Line]:
    """Lines of one ignored test, built as it is released.

    Raises:
        ValueError: cargo is not installed, or the test failed.
    """
    chosen = ["--", test, "--exact", "--ignored", "--nocapture"]
    return _lines(["cargo", "test", "--release", *_CORE, "--test", name, *chosen])


def wanted(stopwatch: Stopwatch, measurements: Iterable[Measurement]) -> Iterator[Measurement]:
    """Those of the cases that were asked for: a program makes all of them."""
    return (measurement for measurement in measurements if stopwatch.wants(measurement.case))


def _lines(command: list[str]) -> Iterator[Line]:
    try:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise ValueError("the suite runs programs of the Rust core: cargo not found") from None
    with process:
        for line in process.stdout or ():
            begin = line.find("{")  # the test harness begins a test's line with its name
            if begin >= 0:
                yield json.loads(line[begin:])
    if process.returncode != 0:
        found = f"exit status {process.returncode}"
        raise ValueError(f"{' '.join(command)}: found {found}, needed 0")
