"""No source file over 500 lines: `python -m tools.check_file_sizes` names those that are."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 500
SOURCE_SUFFIXES = {".c", ".cc", ".cu", ".cuh", ".h", ".proto", ".py", ".rs", ".sh"}
GENERATED = "python/hisparse_sidecar/_proto/"


def oversized_files(root: Path = ROOT) -> list[tuple[str, int]]:
    """Name and line count of each source file with more than `MAX_LINES` lines.

    Files that git tracks or would track; generated code is left out.
    """
    sizes = [(name, _count_lines(root / name)) for name in _source_files(root)]
    return [(name, lines) for name, lines in sizes if lines > MAX_LINES]


def main() -> int:
    """Exit status 1 if a file is too long."""
    found = oversized_files()
    for name, lines in found:
        print(f"{name}: {lines} lines, at most {MAX_LINES} allowed")
    return 1 if found else 0


def _source_files(root: Path) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    names = sorted(set(filter(None, listed.split("\0"))))
    return [name for name in names if _is_source(name) and (root / name).is_file()]


def _is_source(name: str) -> bool:
    return Path(name).suffix in SOURCE_SUFFIXES and not name.startswith(GENERATED)


def _count_lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


if __name__ == "__main__":
    raise SystemExit(main())
