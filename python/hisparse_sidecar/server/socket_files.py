"""The socket files: a dead server's are replaced, a live one's refused, ours are mode 0600."""

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hisparse_sidecar.errors import WrongState

_OWNER_ONLY_UMASK = 0o177


@contextmanager
def claimed(*paths: Path) -> Iterator[None]:
    """Inside, `paths` are free to bind, and what is bound is readable by the owner alone.

    The directory is locked meanwhile, so that of two servers that start at once one wins.

    Raises:
        WrongState: a live server listens on one of them, or it is no socket.
    """
    folder = os.open(paths[0].parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        for path in paths:
            _remove_dead(path)
        before = os.umask(_OWNER_ONLY_UMASK)
        try:
            yield
        finally:
            os.umask(before)
    finally:
        os.close(folder)


def identity(path: Path) -> tuple[int, int]:
    """Device and inode: whether a socket file is still the one that we bound."""
    found = path.lstat()
    return found.st_dev, found.st_ino


def remove_own(path: Path, bound: tuple[int, int]) -> None:
    """Removes the socket file unless another server has replaced it."""
    try:
        if identity(path) == bound:
            path.unlink()
    except FileNotFoundError:
        return


def _remove_dead(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise WrongState(f"{path} is no socket (file mode {mode:o}), it is left alone")
    if _is_live(path):
        raise WrongState(f"a live server listens on {path}, stop it or choose another path")
    path.unlink()


def _is_live(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:  # it listens, with a full backlog
            return True
    return True
