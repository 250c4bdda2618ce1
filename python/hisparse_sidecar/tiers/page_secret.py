"""The secret that page names are made with: 32 bytes in a file of the owner alone."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from hisparse_sidecar.config import TiersConfig
from hisparse_sidecar.errors import InvalidArgument

SECRET_BYTES = 32
_OWNER_ONLY = 0o600


def page_secret(config: TiersConfig) -> bytes | None:
    """The secret of a configuration; None where nobody else is to find the pages.

    Raises:
        InvalidArgument: the file holds something else, or others may read it.
        OSError: it cannot be made or read.
    """
    path = _secret_path(config)
    if path is None:
        return None
    with suppress(FileExistsError):
        _make(path)
    return _read(path)


def _secret_path(config: TiersConfig) -> Path | None:
    if config.secret_file is not None:
        return Path(config.secret_file)
    if config.file_directory is not None:
        directory = Path(config.file_directory)
        return directory.with_name(directory.name + ".secret")
    return None


def _make(path: Path) -> None:
    """Writes a new secret beside the path and links it there: no reader finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise FileExistsError(path)
    new = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.link(new, path)
    finally:
        new.unlink()
    _sync_directory(path.parent)  # pages that are durable are lost without their secret


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise InvalidArgument(f"{path} has mode {mode:04o}, needs {_OWNER_ONLY:04o}")
        secret = file.read(SECRET_BYTES + 1)
    if len(secret) != SECRET_BYTES:
        found = "more" if len(secret) > SECRET_BYTES else str(len(secret))
        raise InvalidArgument(f"{path} holds {found} bytes, needs {SECRET_BYTES}")
    return secret
