"""Pages whose bytes follow from their number."""

import hashlib

PAGE_BYTES = 64 << 10


def identity_of(page: int) -> bytes:
    return hashlib.sha256(page.to_bytes(8, "little")).digest()


def bytes_of(page: int, num_bytes: int = PAGE_BYTES) -> bytes:
    pattern = identity_of(page ^ 0xFFFF)
    return (pattern * (num_bytes // len(pattern) + 1))[:num_bytes]
