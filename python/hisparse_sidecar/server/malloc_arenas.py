"""Few arenas for malloc in a process that serves for weeks.

glibc gives each of many threads an arena of its own, up to eight a core, and what is free in one is
no use to the others: resident memory grows although no more is in use.
"""

import ctypes

_M_ARENA_MAX = -8  # of <malloc.h>
SERVER_ARENAS = 2


def limit_malloc_arenas(most: int = SERVER_ARENAS) -> bool:
    """Lets malloc make no more arenas than `most`; for a process's start, before its threads.

    Returns:
        False where the C library knows no such limit.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_M_ARENA_MAX, most))
