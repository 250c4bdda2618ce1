"""What a process takes of the machine, as /proc has it: memory, file descriptors, threads."""

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_KIB = 1024


@dataclass(frozen=True)
class Footprint:
    """A process at one moment.

    Attributes:
        rss_bytes: resident, whatever it belongs to: the host pool's pages as they are touched, too.
        anonymous_bytes: of these, neither of a file nor shared: where the heap is.
        num_fds: open file descriptors.
        num_threads: alive.
    """

    rss_bytes: int
    anonymous_bytes: int
    num_fds: int
    num_threads: int


def footprint(pid: int, proc: Path = _PROC) -> Footprint:
    """What the process takes now.

    Args:
        pid: of a process of the same user.
        proc: where procfs is.

    Raises:
        OSError: there is no such process, or it has ended and is not waited for.
    """
    folder = proc / str(pid)
    rss, anonymous = _memory(folder)
    return Footprint(
        rss, anonymous, len(os.listdir(folder / "fd")), len(os.listdir(folder / "task"))
    )


def _memory(folder: Path) -> tuple[int, int]:
    try:
        lines = (folder / "smaps_rollup").read_text().splitlines()
    except FileNotFoundError:  # a kernel without it; statm may be off by some pages a thread
        return _counted_memory(folder)
    sizes = {words[0]: words[1] for words in map(str.split, lines) if len(words) == 3}
    if "Rss:" not in sizes:
        raise ProcessLookupError(f"{folder} has no memory, the process has ended")
    return int(sizes["Rss:"]) * _KIB, int(sizes["Anonymous:"]) * _KIB


def _counted_memory(folder: Path) -> tuple[int, int]:
    pages = [int(word) for word in (folder / "statm").read_text().split()]
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return pages[1] * page_bytes, (pages[1] - pages[2]) * page_bytes
