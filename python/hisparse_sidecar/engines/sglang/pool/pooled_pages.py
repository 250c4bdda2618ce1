"""Pooled keys of an engine's pages of index keys: one row for each page, whoever shares it."""

from collections.abc import Sequence

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout


class PooledPages:
    """For each layer one pooled key a page, under the page's own number.

    A page's pooled key follows from its 64 rows alone, so it is written when the page is full and
    needs no care when sequences share pages, end, or give pages back. A page that is not full has
    none, and none is asked for: selection always takes a row's newest block.

    Attributes:
        num_bytes: memory of all layers.
    """

    def __init__(
        self, ops: Ops, layout: IndexLayout, pages: Sequence[torch.Tensor], first_layer: int
    ) -> None:
        """Room for the pooled keys of some layers.

        Args:
            ops: the ops to use.
            layout: how index rows are stored.
            pages: of each layer [num_pages, page_bytes] uint8, 0 pages in a layer without keys.
            first_layer: number of the first one.
        """
        self._ops, self._layout, self._first = ops, layout, first_layer
        self._pages = list(pages)
        self._pooled = [
            page.new_zeros(-(-len(page) // PAGE_TOKENS), layout.page_bytes) for page in pages
        ]
        self.num_bytes = sum(pooled.numel() for pooled in self._pooled)

    def of_layer(self, layer: int) -> torch.Tensor:
        """[num_pooled_pages, page_bytes] uint8, the pooled key of page p as row p."""
        return self._pooled[layer - self._first]

    def rows_written(self, layer: int, row_ids: torch.Tensor) -> None:
        """Pools the pages that these rows of a layer made full.

        Args:
            layer: the layer.
            row_ids: [n] int64 or int32, page * 64 + place; the rows are written already, on the
                current stream.
        """
        pages = self._pages[layer - self._first]
        if len(pages):
            self._ops.pool_full_pages(pages, row_ids, self.of_layer(layer), self._layout)

    def rows_written_in_all_layers(self, row_ids: torch.Tensor) -> None:
        """The same for every layer, as after rows were moved or brought back."""
        row_ids = row_ids.to(self._pages[0].device)  # what comes back from the host is named there
        for layer in range(self._first, self._first + len(self._pages)):
            self.rows_written(layer, row_ids)
