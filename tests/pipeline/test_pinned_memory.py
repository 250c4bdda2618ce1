"""Host memory that the device reads and writes in place: registered in chunks, let go of once."""

from collections.abc import Iterator

import pytest
import torch

from hisparse_kernels.gpu.backend import triton_ops
from hisparse_sidecar._core import HostRegion
from hisparse_sidecar.backends import find_device
from hisparse_sidecar.errors import RegionError, WrongState
from hisparse_sidecar.tiers.host_memory import HostMemory, host_layout
from hisparse_sidecar.tiers.pinned_memory import PinnedMemory
from tests.pipeline.world import small_config

pytestmark = pytest.mark.gpu
CHUNK = 1 << 16


@pytest.fixture
def cuda() -> torch.device:
    return find_device("cuda")


@pytest.fixture
def region() -> Iterator[HostRegion]:
    """Three chunks and a part of a page."""
    made = HostRegion(3 * CHUNK + 3393)
    yield made
    made.close()


@pytest.fixture
def memory(cuda: torch.device) -> Iterator[HostMemory]:
    """A small host pool, registered in chunks whose borders lie within rows and pages."""
    made = HostMemory(host_layout(small_config(host_pages=9)), cuda, pinned_chunk_bytes=CHUNK)
    yield made
    made.close()


def test_chunks_cover_the_region_once(region: HostRegion, cuda: torch.device) -> None:
    pinned = PinnedMemory(region, cuda, chunk_bytes=CHUNK)

    starts = [region.address + i * CHUNK for i in range(4)]
    assert pinned.chunks == list(zip(starts, [CHUNK, CHUNK, CHUNK, 3393], strict=True))
    assert pinned.tensor.shape == (region.num_bytes,)
    assert pinned.tensor.data_ptr() == region.address
    pinned.close()


def test_what_the_device_writes_is_seen_on_the_cpu_and_back(
    region: HostRegion, cuda: torch.device
) -> None:
    pinned = PinnedMemory(region, cuda, chunk_bytes=CHUNK)
    host = torch.frombuffer(memoryview(region), dtype=torch.uint8)
    values = torch.arange(region.num_bytes) % 251

    pinned.tensor.add_(values.to(cuda).byte())
    pinned.synchronize()
    assert torch.equal(host, values.byte())

    host += 3
    assert torch.equal((pinned.tensor + 1).cpu(), values.byte() + 4)
    del host
    pinned.close()


def test_kernels_copy_rows_and_pages_across_borders_of_chunks(
    memory: HostMemory, cuda: torch.device
) -> None:
    ops = triton_ops()
    for name in ("kv_rows", "index_pages", "pooled_rows"):
        for number, pool in enumerate(getattr(memory, name)):
            wanted = torch.randint(0, 256, pool.shape, dtype=torch.uint8)
            row_ids = torch.randperm(len(wanted))
            ops.spill(wanted[row_ids].to(cuda), row_ids.to(cuda), pool)
            assert torch.equal(getattr(memory.on_cpu(), name)[number], wanted), f"{name} {number}"
            assert torch.equal(pool[row_ids.to(cuda)].cpu(), wanted[row_ids]), f"{name} {number}"


def test_a_view_keeps_the_memory_registered_until_it_is_let_go(cuda: torch.device) -> None:
    memory = HostMemory(host_layout(small_config(host_pages=9)), cuda, pinned_chunk_bytes=CHUNK)
    chunks = -(-memory.region.num_bytes // CHUNK)
    held = memory.kv_rows[1][7]
    for _ in range(2):
        with pytest.raises(WrongState, match=f"still held, {chunks} chunks are registered"):
            memory.close()
    assert int((held + 5).sum()) == 5 * held.numel()  # it can still be read
    del held
    memory.close()
    memory.close()
    with pytest.raises(WrongState):
        _ = memory.region.address


def test_a_view_on_the_cpu_keeps_the_region_until_it_is_let_go(cuda: torch.device) -> None:
    memory = HostMemory(host_layout(small_config(host_pages=9)), cuda)
    held = memory.on_cpu().kv_rows[1][7]
    with pytest.raises(WrongState):
        memory.close()
    held += 5
    assert int(held.sum()) == 5 * held.numel()
    del held
    memory.close()


def test_closed_memory_has_no_tensor_and_can_be_registered_again(
    region: HostRegion, cuda: torch.device
) -> None:
    for _ in range(2):
        pinned = PinnedMemory(region, cuda, chunk_bytes=CHUNK)
        pinned.close()
        pinned.close()
        assert pinned.chunks == []
        with pytest.raises(WrongState, match="is closed, 0 bytes"):
            _ = pinned.tensor


def test_a_refused_chunk_leaves_nothing_registered(region: HostRegion, cuda: torch.device) -> None:
    cudart = torch.cuda.cudart()
    third = region.address + 2 * CHUNK
    assert int(cudart.cudaHostRegister(third, CHUNK, 0)) == 0
    message = rf"cannot register {CHUNK} bytes of host memory after {2 * CHUNK}: .*already"
    for _ in range(2):  # the second call would fail at its first chunk if that had stayed
        with pytest.raises(RegionError, match=message):
            PinnedMemory(region, cuda, chunk_bytes=CHUNK)
        assert torch.ones(5, device=cuda).sum().item() == 5  # the error is not left for others
    assert int(cudart.cudaHostUnregister(third)) == 0
    PinnedMemory(region, cuda, chunk_bytes=CHUNK).close()
