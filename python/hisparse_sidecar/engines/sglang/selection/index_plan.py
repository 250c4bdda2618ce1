"""The rows of one forward pass, laid out for selection in an engine's pages."""

from dataclasses import dataclass

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout
from hisparse_kernels.paged_batch import PagedBatch
from hisparse_kernels.pooled_rows import PooledRows
from hisparse_sidecar.attention.paged_index_keys import PagedIndexKeys, PlannedRows
from hisparse_sidecar.selection.contract import Selector
from hisparse_sidecar.selection.hisa import HisaSelector
from hisparse_sidecar.selection.row_groups import select_in_groups

_MAX_LOGITS_BYTES = 1 << 28


@dataclass(frozen=True)
class LayerKeys:
    """Index keys of one layer.

    Attributes:
        pages: [num_pages, page_bytes] uint8.
        pooled: [num_pooled_pages, page_bytes] uint8, the pooled key of page p as row p.
    """

    pages: torch.Tensor
    pooled: torch.Tensor


class IndexPlan:
    """Made once a forward pass, in a few launches and fills; every layer then selects by it.

    Attributes:
        num_rows: query rows; those of a query beyond it are the engine's padding.
    """

    def __init__(
        self,
        ops: Ops,
        layout: IndexLayout,
        batch: PagedBatch,
        num_rows: int,
        slots: PagedBatch | None = None,
    ) -> None:
        """Lays the batch out.

        Args:
            ops: the ops to use.
            layout: how index rows are stored.
            batch: whose rows and pages of index keys these are, in dense pages of 64 tokens.
            num_rows: query rows.
            slots: the same batch with the engine's pages, where these are others.
        """
        self._ops, self._layout, self.num_rows = ops, layout, num_rows
        self._slots = batch if slots is None else slots
        self._has_slots = self._slots is batch
        num_seqs, found = batch.kv_pages.shape
        width = max(1, -(-found // PAGE_TOKENS)) * PAGE_TOKENS  # a multiple, see `PooledRows`
        self._num_tokens = found * PAGE_TOKENS
        self._rows = PlannedRows.empty(num_rows, num_seqs, width, batch.kv_lens.device)
        self._rows.lay_out(ops, batch, self._num_tokens, PAGE_TOKENS)

    def select(
        self,
        selector: Selector,
        index_q: torch.Tensor,
        index_weights: torch.Tensor,
        keys: LayerKeys,
        topk: int,
    ) -> torch.Tensor:
        """[num_rows, topk] int32, token positions, ascending, -1 pads the tail.

        Args:
            selector: who chooses.
            index_q: [num_rows, index_heads, 128] e4m3.
            index_weights: [num_rows, index_heads] fp32, all scales but the key's folded in.
            keys: of the layer.
            topk: tokens of a row.
        """
        query = self._rows.query(index_q, index_weights, topk)
        return select_in_groups(selector, query, self._keys(keys), _MAX_LOGITS_BYTES)

    def select_slots(
        self,
        selector: Selector,
        index_q: torch.Tensor,
        index_weights: torch.Tensor,
        keys: LayerKeys,
        topk: int,
        num_pages: int,
    ) -> torch.Tensor:
        """What `select` finds as the engine's slots: page * 64 + place.

        Where index keys lie at these slots, HISA names them by itself; else positions are located.

        Args:
            selector: who chooses.
            index_q: see `select`.
            index_weights: see `select`.
            keys: of the layer.
            topk: tokens of a row.
            num_pages: pages that the engine's slots name.
        """
        if self._has_slots and isinstance(selector, HisaSelector):
            query, of_layer = self._rows.query(index_q, index_weights, topk), self._keys(keys)
            bound = _MAX_LOGITS_BYTES
            return select_in_groups(selector, query, of_layer, bound, selector.select_rows)
        positions = self.select(selector, index_q, index_weights, keys, topk)
        return self._ops.locate_rows(positions, self._slots, num_pages, PAGE_TOKENS)

    def _keys(self, keys: LayerKeys) -> PagedIndexKeys:
        pooled = keys.pooled, PooledRows(self._rows.page_table)
        where = PAGE_TOKENS, pooled, keys.pages, self._rows, self._num_tokens
        return PagedIndexKeys(self._ops, self._layout, *where)
