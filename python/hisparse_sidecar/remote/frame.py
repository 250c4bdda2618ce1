"""How a page travels: a header of 64 bytes, then the page; as in `rust/core/src/tier/frame.rs`.

The header is `HISPAGE` and a zero, version, tokens, identity, bytes of the page, a zero word, and
the CRC-32 of the 60 bytes before it and of the page; numbers are little-endian.
"""

import struct

try:  # the same checksum, at 50 GB/s instead of 4
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

FRAME_BYTES = 64
FRAME_VERSION = 1
IDENTITY_BYTES = 32

_MAGIC = b"HISPAGE\0"
_CHECKED = struct.Struct("<8sII32sQI")  # 60 bytes
_CHECKSUM = struct.Struct("<I")
_PIECE_BYTES = 256 << 10


def write_frame(frame: memoryview, identity: bytes, page: memoryview, num_tokens: int) -> None:
    """Copies a page to a frame of its own, in pieces that the checksum finds in the CPU's cache.

    Args:
        frame: `FRAME_BYTES` + the page's bytes, to write; `FRAME_BYTES` for the header alone.
        identity: 32 bytes that name the page.
        page: the page's bytes.
        num_tokens: tokens of the page, 1 to 64.
    """
    checked = _CHECKED.pack(_MAGIC, FRAME_VERSION, num_tokens, identity, page.nbytes, 0)
    checksum = crc32(checked)
    if frame.nbytes == FRAME_BYTES:
        checksum = crc32(page, checksum)
    else:
        checksum = _copy(page, frame[FRAME_BYTES:], checksum)
    frame[:FRAME_BYTES] = checked + _CHECKSUM.pack(checksum)


def _copy(page: memoryview, to: memoryview, checksum: int) -> int:
    for start in range(0, page.nbytes, _PIECE_BYTES):
        piece = page[start : start + _PIECE_BYTES]
        checksum = crc32(piece, checksum)
        to[start : start + piece.nbytes] = piece
    return checksum


def open_frame(frame: memoryview, identity: bytes, num_bytes: int) -> memoryview | None:
    """The page in a frame; None if it is another page, of another length, or one bit is wrong."""
    if frame.nbytes != FRAME_BYTES + num_bytes:
        return None
    magic, version, _, found, length, _ = _CHECKED.unpack_from(frame)
    if (magic, version, found, length) != (_MAGIC, FRAME_VERSION, identity, num_bytes):
        return None
    (stored,) = _CHECKSUM.unpack_from(frame, _CHECKED.size)
    page = frame[FRAME_BYTES:]
    return page if stored == crc32(page, crc32(frame[: _CHECKED.size])) else None
