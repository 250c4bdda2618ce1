"""Snapshots of processes in a folder of shared memory: written whole, read by who likes.

A writer never waits for a reader, nor a reader for a writer: a file is replaced by a rename.
"""

import json
import os
import stat
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hisparse_sidecar._core import Stats
from hisparse_sidecar.engine_stats.stats import EngineRequests, EngineStats, SelectionCalls
from hisparse_sidecar.errors import HisparseError, WrongState
from hisparse_sidecar.stats import GroupTraffic, SelectionCounts, TierBytes, Traffic

_ROOT = Path("/dev/shm")  # memory: nothing is written to a disk
_SUFFIX = ".json"
_START_FIELD = 19  # of /proc/PID/stat behind the name: when the process started, in clock ticks


@dataclass(frozen=True)
class PublishedStats:
    """A snapshot as a reader finds it.

    Attributes:
        stats: the snapshot.
        pid: of the process that wrote it.
        age_seconds: since it was written.
        is_alive: whether that process still runs.
    """

    stats: EngineStats
    pid: int
    age_seconds: float
    is_alive: bool


class StatsFolder:
    """The snapshots of the processes of one engine; readable by their user alone."""

    def __init__(self, name: str, root: Path = _ROOT) -> None:
        """A folder that need not exist.

        Args:
            name: the engine's, by which its readers find it.
            root: where the folders of this user lie.
        """
        self._own = root / f"hisparse-{os.getuid()}"
        self.path = self._own / name

    def make(self) -> None:
        """Makes the folder, if there is none.

        Raises:
            OSError: it cannot be made.
            WrongState: it is another user's, or open to others.
        """
        for folder in (self._own, self.path):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
        self._check()

    def publish(self, stats: EngineStats) -> None:
        """Writes this process's snapshot in the place of its last one.

        Raises:
            OSError: it cannot be written.
            WrongState: the folder is another user's, or open to others.
        """
        pid = os.getpid()
        values = {"at": time.monotonic(), "started": _started(pid), "stats": _plain(stats)}
        self._replace(self._path_of(pid), json.dumps(values))

    def withdraw(self) -> None:
        """Removes this process's snapshot, if there is one, and folders that it leaves empty."""
        self._path_of(os.getpid()).unlink(missing_ok=True)
        self.remove_if_empty()

    def remove_if_empty(self) -> None:
        """Removes the folder, and that of the user, where nothing is in them."""
        with suppress(OSError):
            self.path.rmdir()
            self._own.rmdir()

    def read(self) -> list[PublishedStats]:
        """All snapshots, by rank; those of processes that have died are among them.

        Raises:
            HisparseError: a snapshot is not as this version writes it.
            WrongState: the folder is another user's, or open to others.
        """
        found = [_read(path) for path in self._files()]
        alive = (one for one in found if one is not None)
        return sorted(alive, key=lambda one: (one.stats.rank, one.pid))

    def remove_dead(self) -> None:
        """Removes what processes that have died have left, those of other versions among them."""
        for path in self._files():
            if not _is_of_running(path):
                path.unlink(missing_ok=True)

    def _replace(self, path: Path, content: str) -> None:
        for _ in range(2):
            with suppress(FileNotFoundError):  # somebody found the folder empty, and removed it
                self._write(path, content)
                return
        self._write(path, content)

    def _write(self, path: Path, content: str) -> None:
        being_written = path.with_suffix(".part")
        self.make()
        being_written.write_text(content)
        being_written.replace(path)

    def _files(self) -> list[Path]:
        if not self.path.exists():
            return []
        self._check()
        return sorted(self.path.glob(f"*{_SUFFIX}"))

    def _check(self) -> None:
        """In a place where everybody may write, what has our name need not be ours."""
        for folder in (self._own, self.path):
            found = folder.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if not is_ours or stat.S_IMODE(found.st_mode) & 0o077:
                raise WrongState(
                    f"{folder} has mode {found.st_mode:o} and owner {found.st_uid}, "
                    f"needs a folder of {os.getuid()} alone"
                )

    def _path_of(self, pid: int) -> Path:
        return self.path / f"{pid}{_SUFFIX}"


def _read(path: Path) -> PublishedStats | None:
    """The snapshot of a file; None = it is gone by now."""
    try:
        values = json.loads(path.read_text())
        stats, age = _stats_of(values["stats"]), time.monotonic() - values["at"]
        pid = int(path.stem)
        return PublishedStats(stats, pid, age, _started(pid) == values["started"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise HisparseError(f"{path} is no snapshot of this version: {error!r}") from None


def _is_of_running(path: Path) -> bool:
    """Whether the process that wrote a file still runs, as far as the file tells."""
    try:
        return bool(_started(int(path.stem)) == json.loads(path.read_text())["started"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None = there is none."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = told.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else int(rest[_START_FIELD - 1])


def _plain(stats: EngineStats) -> dict[str, Any]:
    values = {field.name: getattr(stats, field.name) for field in fields(stats)}
    made = {
        "core": stats.core.as_dict(),
        "groups": [asdict(group) for group in stats.groups],
        "held": asdict(stats.held),
        "requests": asdict(stats.requests),
        "selections": [asdict(calls) for calls in stats.selections],
    }
    return values | made


def _stats_of(values: dict[str, Any]) -> EngineStats:
    made = {
        "core": Stats.from_dict(values["core"]),
        "groups": tuple(map(_group_of, values["groups"])),
        "held": TierBytes(**values["held"]),
        "requests": EngineRequests(**values["requests"]),
        "selections": tuple(SelectionCalls(**calls) for calls in values["selections"]),
    }
    return EngineStats(**values | made)


def _group_of(values: dict[str, Any]) -> GroupTraffic:
    traffic = {name: Traffic(**values[name]) for name in ("rows", "blocks", "prefill_blocks")}
    return GroupTraffic(**values | traffic | {"selection": SelectionCounts(**values["selection"])})
