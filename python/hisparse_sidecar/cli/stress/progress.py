"""Live counters of a run on stderr."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from hisparse_sidecar.cli.stress.counts import Counts

_LINE_SECONDS = 5.0


class StressProgress:
    """A bar with counters; where stderr is no terminal, a line now and then. A context manager."""

    def __init__(self, console: Console, seconds: float) -> None:
        self._console = console
        columns = (BarColumn(20), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("starting", total=seconds)
        self._next_line = _LINE_SECONDS

    def show(self, counts: Counts, seconds: float) -> None:
        """Shows where the run is."""
        words = _words(counts)
        self._progress.update(self._task, completed=seconds, description=words)
        if not self._console.is_terminal and seconds >= self._next_line:
            self._next_line = seconds + _LINE_SECONDS
            self._console.print(f"{seconds:6.0f} s  {words}", highlight=False, soft_wrap=True)

    def __enter__(self) -> "StressProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _words(counts: Counts) -> str:
    faults = " ".join(f"{kind} {count:,}" for kind, count in sorted(counts.faults.items()))
    parts = [
        f"{sum(counts.operations.values()):,} operations",
        f"{counts.checked_bytes / 1e6:,.0f} MB compared",
        f"{counts.wrong_bytes} wrong",
        f"{counts.pages_lost} lost",
        f"faults: {faults or 'none'}",
    ]
    seen = counts.footprint
    if seen is not None:
        memory = f"RSS {seen.rss_bytes / (1 << 20):,.0f} MiB"
        parts.append(f"{memory}, {seen.num_fds} fds, {seen.num_threads} threads")
    return ", ".join(parts)
