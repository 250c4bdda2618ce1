"""The one place where the command line writes: results to stdout, everything else to stderr."""

import json
import sys
from collections.abc import Mapping

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

_FILE_COLUMNS, _MOST_FILE_COLUMNS = 100, 200


def write_json(result: Mapping[str, object]) -> None:
    """Write one JSON object and a newline to stdout: all that `--json` may put there."""
    sys.stdout.write(json.dumps(result, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def write_result(*renderables: RenderableType) -> None:
    """Write tables and text to stdout; in a file or a pipe a table is as wide as its rows."""
    for renderable in renderables:
        console = Console() if sys.stdout.isatty() else Console(width=_file_columns(renderable))
        console.print(renderable)


def _file_columns(renderable: RenderableType) -> int:
    if not isinstance(renderable, Table):
        return _FILE_COLUMNS
    widest = Console(width=_MOST_FILE_COLUMNS).measure(renderable).maximum
    return max(_FILE_COLUMNS, widest)


def write_error(command: str, message: str) -> None:
    """Write `hisparse COMMAND: message` to stderr."""
    sys.stderr.write(f"hisparse {command}: {message}\n")
    sys.stderr.flush()


def progress_console() -> Console:
    """Console of progress and remarks: stderr, so that stdout holds the result alone."""
    return Console(stderr=True)


def simple_table(title: str, *columns: str) -> Table:
    """An empty table in the one look of the command line; its first column does not wrap."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0)
    table.show_header = any(columns)
    return table


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors that are the user's to act on: shown as one line, without a traceback."""
    from hisparse_sidecar._core import HisparseError

    return (HisparseError, ValueError, OSError)
