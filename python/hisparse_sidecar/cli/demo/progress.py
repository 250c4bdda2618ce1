"""Live progress of the demo on stderr: one bar for each stage of each run."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


class DemoProgress:
    """Bars that appear as their stage begins; a context manager."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "DemoProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, run: str, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` tokens of a stage of a run are done."""
        name = f"{run}: {stage}"
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done)

    def remark(self, text: str) -> None:
        """Print one line above the bars."""
        self._progress.console.print(text, highlight=False)
