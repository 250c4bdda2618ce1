"""What the heaps of this process have in use: growth of these is no allocator's whim."""

import ctypes
import sys
from dataclasses import asdict, dataclass

_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks")
_FREE_FIELDS = ("fordblks", "keepcost")


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [(name, ctypes.c_size_t) for name in (*_FIELDS, *_FREE_FIELDS)]


@dataclass(frozen=True)
class Heap:
    """Memory in use, however much more of it is resident.

    Attributes:
        malloc_bytes: given out by malloc: Rust's, those of libraries, large objects of Python's;
            None where the C library does not tell, as glibc before 2.33.
        python_blocks: given out by Python's own allocator: small objects.
    """

    malloc_bytes: int | None
    python_blocks: int

    def to_json(self) -> dict[str, int | None]:
        """Every field by its name."""
        return asdict(self)


def heap() -> Heap:
    """What is in use now, of all threads."""
    return Heap(_malloc_bytes(), sys.getallocatedblocks())


def _malloc_bytes() -> int | None:
    try:
        call = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return None
    call.restype = _MallInfo
    found = call()
    return int(found.uordblks + found.hblkhd)
