import ctypes
import mmap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from hisparse_sidecar.server import SidecarServer, free_memory
from hisparse_sidecar.server.free_memory import return_free_memory
from tests.pipeline.world import small_config

_PIECES = 2000
_PIECE_BYTES = 64 * 1024
_KEPT_BYTES = 2048


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@contextmanager
def freed_between_kept_objects() -> Iterator[None]:
    """Inside, malloc has a free piece behind each of many small objects: nothing is at an end."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.realloc.restype = ctypes.c_void_p
    libc.realloc.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.free.argtypes = (ctypes.c_void_p,)
    whole = [libc.malloc(_KEPT_BYTES + _PIECE_BYTES) for _ in range(_PIECES)]
    for one in whole:
        ctypes.memset(one, 1, _KEPT_BYTES + _PIECE_BYTES)
    # an object that shrinks stays where it is
    kept = [libc.realloc(one, _KEPT_BYTES) for one in whole]
    assert kept == whole
    yield
    for one in kept:
        libc.free(one)


def test_what_lies_free_between_living_objects_is_given_back() -> None:
    with freed_between_kept_objects():
        before = resident_bytes()

        assert return_free_memory()

        assert before - resident_bytes() > _PIECES * _PIECE_BYTES * 0.9


def test_a_server_gives_back_what_lies_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_measured = Event()  # not before: what was given back by then would not be seen
    monkeypatch.setattr(free_memory, "_RETURN_SECONDS", 0.01)
    monkeypatch.setattr(
        free_memory, "return_free_memory", lambda: is_measured.is_set() and return_free_memory()
    )
    with SidecarServer(small_config(), tmp_path / "sidecar.sock"), freed_between_kept_objects():
        most = resident_bytes()
        is_measured.set()
        deadline = time.monotonic() + 30

        while most - resident_bytes() < _PIECES * _PIECE_BYTES * 0.9:
            most = max(most, resident_bytes())
            assert time.monotonic() < deadline
            time.sleep(0.01)
