"""The host tier as tensors: views of the region that the core owns, one array for each layer."""

import gc
from contextlib import suppress
from dataclasses import dataclass

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import HostLayout, HostRegion
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.errors import HisparseError, WrongState
from hisparse_sidecar.requirements import require
from hisparse_sidecar.tiers.pinned_memory import CHUNK_BYTES, PinnedMemory


@dataclass(frozen=True)
class HostArrays:
    """Views of the region, on one device.

    Attributes:
        kv_rows: for each layer [host_pages * 64, kv_row_bytes] uint8.
        index_pages: for each anchor group [host_pages, index_page_bytes] uint8.
        pooled_rows: for each anchor group [host_pages, index_row_bytes] uint8; the pooled key of a
            block lies at the block's last page.
    """

    kv_rows: list[torch.Tensor]
    index_pages: list[torch.Tensor]
    pooled_rows: list[torch.Tensor]

    def clear(self) -> None:
        """Lets go of every view."""
        for arrays in (self.kv_rows, self.index_pages, self.pooled_rows):
            arrays.clear()


def host_layout(config: SidecarConfig) -> HostLayout:
    """Where the arrays of a configuration's host pool lie."""
    return HostLayout(
        config.model.num_layers,
        len(config.model.anchors),
        config.kv.row_bytes,
        config.index.row_bytes,
        config.host_pages,
    )


class HostMemory:
    """Pages of KV rows, index rows and pooled keys in one sealed region.

    On CUDA the region is registered, and what ops get are tensors of the device over the very
    bytes that lie on the host: kernels and indexing reach them with no copy in between. See
    `PinnedMemory` for what such tensors must not be used for.
    """

    def __init__(
        self,
        layout: HostLayout,
        device: torch.device | None = None,
        *,
        region: HostRegion | None = None,
        huge_pages: bool = False,
        numa_node: int | None = None,
        pinned_chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """Makes the region, or takes charge of one.

        Args:
            layout: what it has room for.
            device: where ops run; default: the CPU.
            region: one that another process made for the same layout.
            huge_pages: see `SidecarConfig`; of a region that is made here.
            numa_node: see `SidecarConfig`; of a region that is made here.
            pinned_chunk_bytes: most bytes of one registration with CUDA.

        Raises:
            InvalidArgument: `region` is too small.
            RegionError: the system has no such memory, or CUDA does not take it.
        """
        self.layout = layout
        needed = layout.num_bytes
        self.region = region or HostRegion(needed, huge_pages=huge_pages, numa_node=numa_node)
        found = self.region.num_bytes
        require(found >= needed, f"the region has {found} bytes, the host pool needs {needed}")
        self._bytes = torch.frombuffer(memoryview(self.region), dtype=torch.uint8)
        self._cpu = self._arrays(self._bytes)
        self._arrays_of_ops = self._cpu
        self._pinned: PinnedMemory | None = None
        if device is None or device.type == "cpu":
            return
        try:
            self._pinned = PinnedMemory(self.region, device, chunk_bytes=pinned_chunk_bytes)
            self._arrays_of_ops = self._arrays(self._pinned.tensor)
        except BaseException:
            with suppress(HisparseError):  # the error's frames may hold views until it is handled
                self.close()
            raise

    @property
    def kv_rows(self) -> list[torch.Tensor]:
        """See `HostArrays`; on the device of the ops."""
        return self._arrays_of_ops.kv_rows

    @property
    def index_pages(self) -> list[torch.Tensor]:
        """See `HostArrays`; on the device of the ops."""
        return self._arrays_of_ops.index_pages

    @property
    def pooled_rows(self) -> list[torch.Tensor]:
        """See `HostArrays`; on the device of the ops."""
        return self._arrays_of_ops.pooled_rows

    def on_cpu(self) -> HostArrays:
        """The same bytes as CPU tensors, after what the device was still writing."""
        if self._pinned is not None:
            self._pinned.synchronize()
        return self._cpu

    def _arrays(self, whole: torch.Tensor) -> HostArrays:
        layout, pages = self.layout, self.layout.num_pages

        def view(offset_bytes: int, rows: int, row_bytes: int) -> torch.Tensor:
            return whole[offset_bytes : offset_bytes + rows * row_bytes].view(rows, row_bytes)

        layers, anchors = range(layout.num_layers), range(layout.num_anchors)
        kv_shape = (pages * PAGE_TOKENS, layout.kv_row_bytes)
        page_bytes, row_bytes = PAGE_TOKENS * layout.index_row_bytes, layout.index_row_bytes
        return HostArrays(
            kv_rows=[view(layout.kv_offset(i), *kv_shape) for i in layers],
            index_pages=[view(layout.index_offset(i), pages, page_bytes) for i in anchors],
            pooled_rows=[view(layout.pooled_offset(i), pages, row_bytes) for i in anchors],
        )

    def close(self) -> None:
        """Drops every view and gives the region back; tensors taken from it must be gone.

        Raises:
            WrongState: one is still held; let go of it and close again.
        """
        for arrays in (self._cpu, self._arrays_of_ops):
            arrays.clear()
        self._bytes = torch.empty(0, dtype=torch.uint8)
        try:
            self._give_back()
        except WrongState:
            gc.collect()  # garbage in a cycle may hold a view: Triton's interpreter leaves such
            self._give_back()

    def _give_back(self) -> None:
        if self._pinned is not None:
            self._pinned.close()
        self.region.close()
