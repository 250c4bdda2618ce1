"""The widest words that a row can be copied in; Triton makes 16-byte accesses of neighbours."""

import triton.language as tl


def word_dtype(row_bytes: int) -> tuple[tl.dtype, int]:
    """Type and bytes of the words of a row; rows of a multiple of 16 bytes move 16 at a time."""
    for dtype, num_bytes in ((tl.int64, 8), (tl.int32, 4), (tl.int16, 2)):
        if row_bytes % num_bytes == 0:
            return dtype, num_bytes
    return tl.int8, 1
