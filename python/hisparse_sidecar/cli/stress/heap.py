"""What malloc has given out in this process: what grows here is no whim of an allocator."""

import ctypes

_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks")
_FREE_FIELDS = ("fordblks", "keepcost")


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [(name, ctypes.c_size_t) for name in (*_FIELDS, *_FREE_FIELDS)]


def malloc_bytes() -> int | None:
    """Bytes in use: Rust's, those of libraries, large objects of Python's; of all threads.

    Python's small objects are not among them: it takes their memory from the system itself.

    Returns:
        None where the C library does not tell, as glibc before 2.33.
    """
    try:
        call = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return None
    call.restype = _MallInfo
    found = call()
    return int(found.uordblks + found.hblkhd)
