import pytest

from hisparse_sidecar.remote.frame import FRAME_BYTES, open_frame, write_frame

IDENTITY, PAGE = bytes([7] * 32), b"0123456789"


def frame() -> bytearray:
    return frame_of(PAGE)


def frame_of(page: bytes) -> bytearray:
    written = bytearray(b"\xee" * (FRAME_BYTES + len(page)))
    write_frame(memoryview(written), IDENTITY, memoryview(page), 64)
    return written


def test_the_layout_is_the_one_that_rust_writes() -> None:
    """`rust/core/src/tier/frame.rs` has the same frame in its tests."""
    numbers = b"\x01\0\0\0\x40\0\0\0" + IDENTITY + b"\x0a" + bytes(11)
    assert bytes(frame()) == b"HISPAGE\0" + numbers + b"\xd0\x0c\x3b\x69" + PAGE


def test_a_frame_gives_its_page_back() -> None:
    page = open_frame(memoryview(frame()), IDENTITY, len(PAGE))
    assert page is not None
    assert bytes(page) == PAGE


@pytest.mark.parametrize("num_bytes", [0, 1, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, 1 << 20])
def test_a_page_of_several_pieces_comes_back(num_bytes: int) -> None:
    page = bytes(range(256)) * (num_bytes // 256 + 1)
    written = frame_of(page[:num_bytes])
    assert open_frame(memoryview(written), IDENTITY, num_bytes) == page[:num_bytes]
    if num_bytes:
        written[-1] ^= 1
        assert open_frame(memoryview(written), IDENTITY, num_bytes) is None


def test_every_flipped_bit_is_seen() -> None:
    for bit in range(8 * (FRAME_BYTES + len(PAGE))):
        flipped = frame()
        flipped[bit // 8] ^= 1 << (bit % 8)
        assert open_frame(memoryview(flipped), IDENTITY, len(PAGE)) is None, bit


@pytest.mark.parametrize("num_bytes", [0, 1, 9, 11])
def test_a_page_of_another_length_is_seen(num_bytes: int) -> None:
    assert open_frame(memoryview(frame()), IDENTITY, num_bytes) is None
    cut = memoryview(frame())[: FRAME_BYTES + num_bytes]
    assert open_frame(cut, IDENTITY, num_bytes) is None


def test_another_page_is_seen() -> None:
    assert open_frame(memoryview(frame()), bytes([8] * 32), len(PAGE)) is None
