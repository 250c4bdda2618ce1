import fcntl
import mmap
import os
import socket
import subprocess
import sys

import pytest

from hisparse_sidecar._core import HostRegion, InvalidArgument, RegionError, WrongState

F_ADD_SEALS = 1033  # fcntl.h; the module has no names for these
SHRINK_GROW_SEAL = 0x7


def region_map_lines(region: HostRegion) -> list[str]:
    """The lines of /proc/self/smaps about the region."""
    with open("/proc/self/smaps") as smaps:
        lines = smaps.read().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{region.address:x}-"))
    end = next(i for i in range(start, len(lines)) if lines[i].startswith("VmFlags"))
    return lines[start : end + 1]


def test_a_region_is_writable_zero_bytes() -> None:
    with HostRegion(5000) as region, memoryview(region) as view:
        assert (len(view), view.readonly, view.format, view.ndim) == (5000, False, "B", 1)
        assert bytes(view) == bytes(5000)
        view[4990:] = b"0123456789"
        assert bytes(view[-3:]) == b"789"
        view.release()


def test_a_tensor_shares_the_bytes_of_a_region() -> None:
    import torch

    region = HostRegion(64)
    tensor = torch.frombuffer(region, dtype=torch.uint8)
    tensor.fill_(7)
    assert bytes(memoryview(region)) == b"\x07" * 64
    assert tensor.data_ptr() == region.address


def test_a_region_is_not_closed_while_its_bytes_are_in_use() -> None:
    region = HostRegion(10)
    view, part = memoryview(region), memoryview(region)[2:4]
    with pytest.raises(WrongState, match="exports of the region: found 2, needed 0"):
        region.close()
    view.release()
    with pytest.raises(WrongState, match="found 1, needed 0"):
        region.close()
    part.release()
    region.close()
    region.close()


def test_a_closed_region_has_neither_bytes_nor_descriptor() -> None:
    region = HostRegion(10)
    fd = region.fd
    region.close()
    for use in (lambda: region.fd, lambda: region.address, lambda: memoryview(region)):
        with pytest.raises(WrongState, match="found 0, needed 1"):
            use()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert region.num_bytes == 10


def test_a_region_is_left_out_of_core_dumps_and_shows_its_name() -> None:
    region = HostRegion(4096, name="rows of a test")
    lines = region_map_lines(region)
    assert "memfd:rows of a test" in lines[0]
    assert "dd" in lines[-1].split()


def test_a_region_can_neither_shrink_nor_grow_nor_be_unsealed() -> None:
    region = HostRegion(4096)
    for num_bytes in (0, 8192):
        with pytest.raises(PermissionError):
            os.ftruncate(region.fd, num_bytes)
    with pytest.raises(PermissionError):
        fcntl.fcntl(region.fd, F_ADD_SEALS, 0x8)


def test_what_the_system_does_not_give_is_reported() -> None:
    region = HostRegion(3 << 20, huge_pages=True, numa_node=1000)
    assert region.huge_pages == (region.page_kind == "huge")
    assert region.page_kind in {"normal", "transparent", "huge"}
    assert region.numa_node is None
    assert HostRegion(10).page_kind == "normal"


def test_another_process_attaches_a_region_through_its_descriptor() -> None:
    region = HostRegion(10_000)
    memoryview(region)[:5] = b"hello"
    program = (
        "import sys; from hisparse_sidecar._core import HostRegion\n"
        "region = HostRegion.attach(int(sys.argv[1])); view = memoryview(region)\n"
        "assert bytes(view[:5]) == b'hello' and len(view) == 10_000\n"
        "view[-3:] = b'bye'\n"
    )
    fd = region.fd
    os.set_inheritable(fd, True)
    subprocess.run([sys.executable, "-c", program, str(fd)], check=True, pass_fds=[fd])
    assert bytes(memoryview(region)[-3:]) == b"bye"


def test_a_region_received_over_a_socket_outlives_its_sender() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    program = (
        "import fcntl, os, socket, sys\n"
        "fd = os.memfd_create('theirs', os.MFD_ALLOW_SEALING); os.ftruncate(fd, 6000)\n"
        f"fcntl.fcntl(fd, {F_ADD_SEALS}, {SHRINK_GROW_SEAL}); os.pwrite(fd, b'end', 5997)\n"
        "socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b'!'], [fd])\n"
    )
    fd = theirs.fileno()
    subprocess.run([sys.executable, "-c", program, str(fd)], check=True, pass_fds=[fd])
    _, (received, *_), _, _ = socket.recv_fds(ours, 1, 1)
    region = HostRegion.attach(received)
    os.close(received)
    assert (region.num_bytes, bytes(memoryview(region)[-3:])) == (6000, b"end")
    ours.close()
    theirs.close()


def test_a_descriptor_that_may_still_change_is_refused() -> None:
    fd = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    with pytest.raises(RegionError, match="region seals: found 0x0, needed 0x7"):
        HostRegion.attach(fd)
    fcntl.fcntl(fd, F_ADD_SEALS, SHRINK_GROW_SEAL)
    assert HostRegion.attach(fd).num_bytes == 4096
    os.close(fd)


def test_a_descriptor_that_is_no_writable_memfd_is_refused() -> None:
    with pytest.raises(RegionError, match="os error 9"):
        HostRegion.attach(1 << 20)
    with open("/dev/null") as null, pytest.raises(RegionError, match="os error 22"):
        HostRegion.attach(null.fileno())
    region = HostRegion(4096)
    read_only = os.open(f"/proc/self/fd/{region.fd}", os.O_RDONLY)
    with pytest.raises(RegionError, match="mmap failed: Permission denied"):
        HostRegion.attach(read_only)
    os.close(read_only)
    assert HostRegion.attach(region.fd).num_bytes == 4096


def test_an_empty_received_region_is_refused() -> None:
    fd = os.memfd_create("empty", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, F_ADD_SEALS, SHRINK_GROW_SEAL)
    with pytest.raises(InvalidArgument, match="bytes of the region: found 0, needed 1 to"):
        HostRegion.attach(fd)
    os.close(fd)


def test_a_subclass_attaches_as_itself() -> None:
    class Named(HostRegion):
        pass

    region = Named(100)
    assert type(Named.attach(region.fd)) is Named


def test_a_dropped_region_leaves_no_mapping() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        region = HostRegion(mmap.PAGESIZE, name="dropped by a test")
        memoryview(region).release()
        del region
    assert len(os.listdir("/proc/self/fd")) == before
    with open("/proc/self/maps") as maps:
        assert "dropped by a test" not in maps.read()


def test_an_export_keeps_its_region_alive() -> None:
    view = memoryview(HostRegion(100))
    view[99] = 5
    assert view[99] == 5
