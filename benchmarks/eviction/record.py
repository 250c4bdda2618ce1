"""Record which files a Python program and its children open: `python -m benchmarks.eviction.record
OUT.csv.gz ARGUMENT ...`, the arguments being those of `python`.

A file is to its pages what a prompt is to its own: page n is of use with all pages before it only,
and files are opened again as prompts are asked again. No name of a file is kept.
"""

import gzip
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

PAGE_BYTES = 4096
_HOOK = """
import os, sys
opens = os.open(os.environ["HISPARSE_OPENS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def note(event, args):
    if event == "open" and isinstance(args[0], str) and not (args[2] or 0) & os.O_ACCMODE:
        try:
            found = os.stat(args[0])
        except OSError:
            return
        os.write(opens, f"{found.st_dev}:{found.st_ino},{found.st_size}\\n".encode())
sys.addaudithook(note)
"""


def record(arguments: list[str]) -> list[tuple[str, int]]:
    """Runs Python; (file, bytes) of each file that it or its children in Python opened to read."""
    with tempfile.TemporaryDirectory() as folder:
        opens = Path(folder) / "opens"
        (Path(folder) / "sitecustomize.py").write_text(_HOOK)
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
        environment = os.environ | {"PYTHONPATH": path, "HISPARSE_OPENS": str(opens)}
        subprocess.run([sys.executable, *arguments], env=environment, check=True)
        lines = [line.split(",") for line in opens.read_text().splitlines()]
    return [(name, int(num_bytes)) for name, num_bytes in lines]


def trace_lines(opened: Iterable[tuple[str, int]]) -> Iterable[str]:
    """`file,pages` of each opening, files numbered as they first come; empty files are left out."""
    numbers: dict[str, int] = {}
    for name, num_bytes in opened:
        if num_bytes:
            number = numbers.setdefault(name, len(numbers))
            yield f"{number},{-(-num_bytes // PAGE_BYTES)}"


def read_requests(path: Path) -> Iterable[str]:
    """A recorded trace as the benchmark reads it: `sequence,page,parent` of every page opened."""
    with gzip.open(path, "rt") as lines:
        for opening, line in enumerate(lines):
            number, num_pages = map(int, line.split(","))
            for page in range(num_pages):
                parent = f"{number}.{page - 1}" if page else ""
                yield f"{opening},{number}.{page},{parent}"


def main() -> None:
    """Records one run."""
    out, *arguments = sys.argv[1:]
    text = "\n".join(trace_lines(record(arguments))) + "\n"
    Path(out).write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
