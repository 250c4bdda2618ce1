"""A whole run: its directory, its driver, and the replay file if something was found."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hisparse_sidecar.cli.stress.driver import Driver
from hisparse_sidecar.cli.stress.progress import StressProgress
from hisparse_sidecar.cli.stress.replay import read_replay, write_replay
from hisparse_sidecar.cli.stress.report import to_json
from hisparse_sidecar.cli.stress.settings import StressSettings


def run_stress(
    settings: StressSettings,
    directory: Path | None,
    replay_path: Path,
    progress: StressProgress,
    replay: Path | None = None,
) -> dict[str, Any]:
    """Runs, and writes a replay file if something was found.

    Args:
        settings: what to run.
        directory: for the server's files; must be empty or missing. None = one that is removed.
        replay_path: where the replay file goes.
        progress: where counters are shown.
        replay: operations to carry out, instead of drawn ones.

    Returns:
        See `to_json`; "replay" names the replay file, None without one.

    Raises:
        InvalidArgument: `replay` is no replay file.
        OSError: the directory or the server is not to be had.
    """
    operations = None if replay is None else read_replay(replay)[1]
    began = time.monotonic()
    with _fresh(directory) as folder:
        driver = Driver(settings, folder)
        counts = driver.drive(operations, progress.show)
    report = to_json(settings, counts, driver.soak(), time.monotonic() - began)
    report["replay"] = None
    if not counts.holds:
        write_replay(replay_path, settings, driver.performed, counts)
        report["replay"] = str(replay_path)
    return report


@contextmanager
def _fresh(directory: Path | None) -> Iterator[Path]:
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="hisparse-stress-") as folder:
            yield Path(folder)
        return
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise FileExistsError(f"{directory} has files already, needs an empty one")
    yield directory
