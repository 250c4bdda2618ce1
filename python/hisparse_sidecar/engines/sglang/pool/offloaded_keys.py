"""Index keys that leave SGLang's slots: a prompt's lie at its rows, later ones on the host.

SGLang's buffer of index keys has a row for each row of the device pool then, not for each slot: the
index row of a prompt's token follows from its device row, by the same mapping. Decoding requests
have windows in the rest of the buffer.
"""

from collections.abc import Callable
from typing import Any

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.engine_rows import EngineRowTier
from hisparse_sidecar.engines.sglang.pool.pooled_pages import PooledPages
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.selection.contract import Selector

_Store = Callable[[torch.Tensor | None], None]


class OffloadedKeys:
    """Turns SGLang's slots and pages into index rows and pages, and keeps decoding's new keys.

    Attributes:
        num_slot_pages: pages that SGLang's slots name.
    """

    def __init__(
        self, tier: EngineRowTier, mapping: torch.Tensor, num_real: torch.Tensor, first_layer: int
    ) -> None:
        """Index keys of one pool.

        Args:
            tier: with an index side.
            mapping: [slots + 1] int64, SGLang's device row of each slot; 0 and -1 = none.
            num_real: [1] int32, requests of a running decode step.
            first_layer: number of the first one.
        """
        assert tier.index is not None
        assert tier.config.index is not None
        self._tier, self._index = tier, tier.index
        self._mapping, self._num_real, self._first = mapping, num_real, first_layer
        self._shift = tier.config.index.row_shift
        self.num_slot_pages = (len(mapping) - 1) // PAGE_TOKENS
        self._is_writing = False

    # -- prompts ------------------------------------------------------------------------------

    def index_rows(self, slots: torch.Tensor) -> torch.Tensor:
        """[n] int64, index row of each of SGLang's slots; 0, of a page of nobody's, = it has none.

        Args:
            slots: [n], of prompts; -1 = padding.
        """
        return (self._mapping[slots.long()] - self._shift).clamp(min=0)

    def index_pages(self, page_table: torch.Tensor) -> torch.Tensor:
        """The same shape, int32, page of index rows of each of SGLang's pages.

        Args:
            page_table: [num_seqs, max_pages] int32, of prompts; what stands beyond a sequence's end
                may be any page.
        """
        rows = self.index_rows(page_table.clamp(min=0).long() * PAGE_TOKENS)
        return torch.div(rows, PAGE_TOKENS, rounding_mode="floor").int()

    # -- writers ------------------------------------------------------------------------------

    def write(
        self,
        layer: int,
        forward_batch: Any,  # noqa: ANN401
        row_ids: torch.Tensor | None,
        store: _Store,
        pooled: PooledPages,
    ) -> None:
        """Lets SGLang's writer store a pass's index keys where they lie here.

        Args:
            layer: number of the layer.
            forward_batch: SGLang's `ForwardBatch`.
            row_ids: slots of the new tokens; None = those of the batch.
            store: SGLang's writer, which takes the rows to write to; it may call another one of its
                writers, whose hook comes here again.
            pooled: pooled keys of prompts.
        """
        if self._is_writing:
            store(row_ids)
            return
        self._is_writing = True
        try:
            slots = forward_batch.out_cache_loc if row_ids is None else row_ids
            if forward_batch.forward_mode.is_decode_or_idle():
                self._write_new(layer, len(slots), store)
            else:
                rows = self.index_rows(slots)
                store(rows)
                pooled.rows_written(layer, rows)
        finally:
            self._is_writing = False

    def _write_new(self, layer: int, rows: int, store: _Store) -> None:
        group, most = self._group_of(layer), self._tier.config.max_sequences
        if rows > most:
            raise WrongState(f"a decode step has {rows} rows, there are tables for {most}")
        if group == 0:
            self._tier.begin_step(self._num_real)
        store(self._index.new_rows(rows))
        self._index.append(group, rows)

    # -- selection ----------------------------------------------------------------------------

    def select(
        self,
        selector: Selector,
        layer: int,
        query: tuple[torch.Tensor, torch.Tensor],
        topk: int,
        num_pages: int,
    ) -> torch.Tensor:
        """[rows, topk] int32, positions that the rows of a decode step select; -1 pads the tail.

        Args:
            selector: who chooses, by pages.
            layer: number of the layer.
            query: [rows, heads, 128] e4m3 and weights [rows, heads] fp32.
            topk: tokens of a row.
            num_pages: most pages of a sequence in this pass.
        """
        group = self._group_of(layer)
        return self._index.select(group, selector, *query, topk, num_pages)

    def _group_of(self, layer: int) -> int:
        config, number = self._tier.config, layer - self._first
        group = config.groups[number]
        if config.anchors[group] != number:
            raise WrongState(f"layer {layer} has no index keys, layer {layer - 1} selects for it")
        return group
