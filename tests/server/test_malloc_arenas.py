"""How many arenas malloc makes for many threads."""

import subprocess
import sys

import pytest

# Threads that allocate side by side; malloc_info names every arena that was made.
_PROGRAM = """
import ctypes, sys, tempfile, threading
from hisparse_sidecar.server.malloc_arenas import limit_malloc_arenas
if sys.argv[1] == "limited":
    assert limit_malloc_arenas(2)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.fopen.restype = ctypes.c_void_p, ctypes.c_void_p
together = threading.Barrier(12)
def allocate():
    together.wait()
    for size in range(1000, 3000):
        libc.malloc(ctypes.c_size_t(size))
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(file.read().count(b"<heap nr="))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_many_threads_share_few_arenas() -> None:
    assert _arenas("limited") <= 2 < _arenas("not limited")


def _arenas(how: str) -> int:
    command = [sys.executable, "-c", _PROGRAM, how]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)
