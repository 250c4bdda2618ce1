"""The file tier's segments, read from outside: which whole pages are on the disk, and where.

The layout of a file is that of rust/core/src/tier/file (page_header.rs, footer.rs).
"""

import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.cli.stress.rows import digest

_BLOCK_BYTES = 4096
_SETTLED_SECONDS = 1.0  # a file that has not changed for so long is read once
_HEAD_CHECKED_BYTES = 56
_HEADER = struct.Struct("<8s8sII32s32s32sQQIIII")
_HEADER_BYTES, _CHECKED_FROM = 192, 16
_MAGIC, _LIVE, _DEAD = b"hispPAGE", b"pageLIVE", b"pagedead"
_TRAILER, _TRAILER_BYTES, _TRAILER_MAGIC = struct.Struct("<8sIIQQQ"), 64, b"hispFOOT"
_ENTRY_BYTES, _ENTRY_BLOCK_AT, _ENTRY_MARK_AT = 96, 72, 88


@dataclass(frozen=True)
class StoredPage:
    """A full page in a file.

    Attributes:
        start: offset of its record.
        end: where the record ends.
        identity: the name that the tier knows it by.
        sequence: of two records of an identity, the one with the larger number counts; equal ones
            have the same bytes, for one is a copy.
        payload: digest of the page's bytes.
        is_live: it was not removed.
    """

    start: int
    end: int
    identity: bytes
    sequence: int
    payload: str
    is_live: bool


class SegmentReader:
    """Reads the segments of a directory. What is damaged or torn is left out."""

    def __init__(self, directory: Path, page_bytes: int) -> None:
        self._directory = directory
        self._page_bytes = page_bytes
        self._damaged: dict[bytes, int] = {}
        self._payloads: dict[tuple[str, int, bytes], str] = {}
        self._settled: dict[str, tuple[tuple[int, int], list[StoredPage]]] = {}

    def paths(self, more_than: int = 0) -> list[Path]:
        """The files there are now that have more bytes, by name."""
        return sorted(
            path for path in self._directory.glob("segment-*") if _num_bytes(path) > more_than
        )

    def live_pages(self) -> dict[bytes, str]:
        """Digest of each full page that a restart would find, by name.

        That is the last whole record of a name: a later one may have been cut short, or given up,
        while the page was moved.
        """
        live = (page for path in self.paths() for page in self.pages(path) if page.is_live)
        ordered = sorted(live, key=lambda page: page.sequence)
        return {page.identity: page.payload for page in ordered if self._is_sound(page)}

    def pages(self, path: Path) -> list[StoredPage]:
        """The full pages of one file; none if it is gone by now."""
        try:
            stat = path.stat()
            state = stat.st_mtime_ns, stat.st_size
            if path.name in self._settled and self._settled[path.name][0] == state:
                return self._settled[path.name][1]
            content = path.read_bytes()
        except FileNotFoundError:
            return []
        pages = self._parsed(path.name, content)
        if time.time() - stat.st_mtime > _SETTLED_SECONDS:
            self._settled[path.name] = state, pages
        return pages

    def _parsed(self, name: str, content: bytes) -> list[StoredPage]:
        if not _is_checked(content, 0, _HEAD_CHECKED_BYTES):
            return []
        end, dead = _footer(content)
        return list(self._walk(name, content[:end], dead))

    def _walk(self, name: str, content: bytes, dead: set[int]) -> Iterator[StoredPage]:
        at = _BLOCK_BYTES
        while at + _HEADER_BYTES <= len(content):
            header = _HEADER.unpack_from(content, at)
            checked = at + _CHECKED_FROM, at + _HEADER_BYTES - 4
            if header[0] != _MAGIC or not _is_checked(content, *checked):
                at += _BLOCK_BYTES
                continue
            length = _record_bytes(header[11])
            payload = content[at + _HEADER_BYTES :][: header[11]]
            is_full = header[3] == PAGE_TOKENS and header[11] == self._page_bytes
            if is_full and zlib.crc32(payload) == header[12]:
                is_live = header[1] == _LIVE and at // _BLOCK_BYTES not in dead
                # a header holds its place, its number in the directory and that checksum
                key = name, at, content[at + _CHECKED_FROM : at + _HEADER_BYTES]
                found = self._digest(key, payload)
                yield StoredPage(at, at + length, header[5], header[7], found, is_live)
            at += length

    def _digest(self, key: tuple[str, int, bytes], payload: bytes) -> str:
        if key not in self._payloads:
            self._payloads[key] = digest(payload)
        return self._payloads[key]

    def _is_sound(self, page: StoredPage) -> bool:
        # What could not be marked dead does not stand in for what was put later and damaged; nor
        # does a copy, of which the tier may have taken either for the page.
        return page.sequence > self._damaged.get(page.identity, -1)

    def damage(self, path: Path, hit: list[StoredPage]) -> None:
        """The file is changed from outside, and these records with it."""
        for page in hit:
            self._damaged[page.identity] = max(page.sequence, self._damaged.get(page.identity, -1))
        self._settled.pop(path.name, None)
        self._payloads = {
            key: value for key, value in self._payloads.items() if key[0] != path.name
        }


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # the tier gives files up at any time
        return 0


def _is_checked(content: bytes, start: int, end: int) -> bool:
    """Whether these bytes have the checksum that follows them."""
    return content[end : end + 4] == zlib.crc32(content[start:end]).to_bytes(4, "little")


def _footer(content: bytes) -> tuple[int, set[int]]:
    """Where the records end, and the blocks of those that the footer calls dead."""
    if len(content) < _BLOCK_BYTES + _TRAILER_BYTES:
        return len(content), set()
    magic, _, _, _, at, count = _TRAILER.unpack_from(content, len(content) - _TRAILER_BYTES)
    if magic != _TRAILER_MAGIC or not 0 <= at <= len(content) - count * _ENTRY_BYTES:
        return len(content), set()
    dead = set()
    for start in range(at, at + count * _ENTRY_BYTES, _ENTRY_BYTES):
        mark_at = start + _ENTRY_MARK_AT
        if content[mark_at : mark_at + 8] == _DEAD:
            dead.add(int.from_bytes(content[start + _ENTRY_BLOCK_AT :][:4], "little"))
    return at, dead


def _record_bytes(num_bytes: int) -> int:
    return -(-(_HEADER_BYTES + num_bytes) // _BLOCK_BYTES) * _BLOCK_BYTES
