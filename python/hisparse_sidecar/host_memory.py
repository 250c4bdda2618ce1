"""The host tier as tensors: views of the region that the core owns, one array for each layer."""

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import HostLayout, HostRegion
from hisparse_sidecar.config import SidecarConfig


class HostMemory:
    """Pages of KV rows, index rows and pooled keys in one sealed region.

    Attributes:
        kv_rows: for each layer [host_pages * 64, kv_row_bytes] uint8.
        index_pages: for each anchor group [host_pages, index_page_bytes] uint8.
        pooled_rows: for each anchor group [host_pages, index_row_bytes] uint8; the pooled key of a
            block lies at the block's last page.
    """

    def __init__(self, config: SidecarConfig) -> None:
        num_anchors = len(config.model.anchors)
        self.layout = HostLayout(
            config.model.num_layers,
            num_anchors,
            config.kv.row_bytes,
            config.index.row_bytes,
            config.host_pages,
        )
        self.region = HostRegion(
            self.layout.num_bytes, huge_pages=config.huge_pages, numa_node=config.numa_node
        )
        pages, layers = config.host_pages, range(config.model.num_layers)
        row_bytes, page_bytes = config.index.row_bytes, config.index.page_bytes
        kv_shape = (pages * PAGE_TOKENS, config.kv.row_bytes)
        self._bytes = torch.frombuffer(memoryview(self.region), dtype=torch.uint8)
        self.kv_rows = [self._view(self.layout.kv_offset(i), *kv_shape) for i in layers]
        anchors = range(num_anchors)
        self.index_pages = [
            self._view(self.layout.index_offset(i), pages, page_bytes) for i in anchors
        ]
        self.pooled_rows = [
            self._view(self.layout.pooled_offset(i), pages, row_bytes) for i in anchors
        ]

    def _view(self, offset_bytes: int, rows: int, row_bytes: int) -> torch.Tensor:
        return self._bytes[offset_bytes : offset_bytes + rows * row_bytes].view(rows, row_bytes)

    def close(self) -> None:
        """Drops every view and gives the region back; tensors taken from it must be gone."""
        self.kv_rows, self.index_pages, self.pooled_rows = [], [], []
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self.region.close()
